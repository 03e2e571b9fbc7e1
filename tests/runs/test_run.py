"""Run directories: one writer, whatever comes between the steps of taking the lock."""

import contextlib
import fcntl
import shutil

import pytest

from cnnbench import open_run
from cnnbench.errors import RunError, UsageError
from cnnbench.recipe.load import load_recipe
from cnnbench.runs.create import begin, new_run
from cnnbench.runs.facts import DataFacts

FACTS = DataFacts(
    name="none", fingerprint="", classes=["a", "b"], stored_channels=1, input_shape=[16, 16, 1],
    color="grey", mean=[0.5], std=[0.5],
)  # fmt: skip
RUNTIME = {"onednn": None, "xla": False, "threads": None}


@pytest.fixture
def recipe(small):
    return load_recipe(small)


@pytest.fixture
def run(recipe, tmp_path):
    with new_run(tmp_path / "run", recipe) as run:
        begin(run, FACTS, RUNTIME)
    return run


@pytest.fixture
def before_the_lock(monkeypatch):
    """Has something done once between the opening of the next lock file and its locking."""
    real = fcntl.flock

    def do(something):
        def flock(handle, how):
            monkeypatch.setattr(fcntl, "flock", real)
            something()
            real(handle, how)

        monkeypatch.setattr(fcntl, "flock", flock)

    return do


def test_a_lock_file_that_was_taken_away_locks_nothing(run, before_the_lock):
    before_the_lock((run.path / "lock").unlink)  # as by a process that could not begin
    with run.locked(), pytest.raises(RunError, match="another process"), run.locked():
        pass


def test_a_lock_file_that_was_replaced_locks_nothing(run, before_the_lock):
    with contextlib.ExitStack() as other:

        def replace():
            (run.path / "lock").unlink()
            other.enter_context(run.locked())

        before_the_lock(replace)
        with pytest.raises(RunError, match="another process"), run.locked():
            pass
    with run.locked():
        pass


def test_a_folder_that_was_taken_away_is_not_locked(run, before_the_lock):
    before_the_lock(lambda: shutil.rmtree(run.path))
    with pytest.raises(RunError, match="No such file"), run.locked():
        pass


def test_a_run_that_another_process_began_meanwhile_is_not_begun_again(
    recipe, tmp_path, before_the_lock
):
    def other():
        with new_run(tmp_path / "run", recipe) as run:
            begin(run, FACTS, RUNTIME)

    before_the_lock(other)
    with pytest.raises(RunError, match="not empty"), new_run(tmp_path / "run", recipe):
        pass
    assert open_run(tmp_path / "run").recipe == recipe


def test_what_kept_a_run_from_its_beginning_is_told_though_the_folder_is_in_use(recipe, tmp_path):
    with pytest.raises(UsageError, match="told"), new_run(tmp_path / "run", recipe) as run:
        (run.path / "another").touch()  # as by a process that waits for the lock
        raise UsageError("told")
    assert [path.name for path in run.path.iterdir()] == ["another"]
