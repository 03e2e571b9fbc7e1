"""Run directories: one writer, whatever comes between the steps of taking the lock."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import resign

import cnnbench
from cnnbench import open_run
from cnnbench.errors import RunError, UsageError
from cnnbench.recipe.load import load_recipe
from cnnbench.runs.create import commit, new_run
from cnnbench.runs.facts import DataFacts
from cnnbench.runs.run import Run
from cnnbench.system import environment

FACTS = DataFacts(
    name="none", fingerprint="", classes=["a", "b"], stored_channels=1, input_shape=[16, 16, 1],
    color="grey", mean=[0.5], std=[0.5],
)  # fmt: skip
RUNTIME = {"onednn": None, "xla": False, "threads": None, "replicas": 1}


@pytest.fixture
def recipe(small):
    return load_recipe(small)


@pytest.fixture
def run(recipe, tmp_path):
    with new_run(tmp_path / "run", recipe) as run:
        commit(run, FACTS, RUNTIME)
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
            commit(run, FACTS, RUNTIME)

    before_the_lock(other)
    with pytest.raises(RunError, match="not empty"), new_run(tmp_path / "run", recipe):
        pass
    assert open_run(tmp_path / "run").recipe == recipe


def test_what_kept_a_run_from_its_beginning_is_told_though_the_folder_is_in_use(recipe, tmp_path):
    with pytest.raises(UsageError, match="told"), new_run(tmp_path / "run", recipe) as run:
        (run.path / "another").touch()  # as by a process that waits for the lock
        raise UsageError("told")
    assert [path.name for path in run.path.iterdir()] == ["another"]


def kept(run):
    return json.loads((run.path / "environment.json").read_text())


def anew(run, environment):
    """The run with another environment.json; a Run reads it once."""
    resign(run, dict(environment))
    return Run(run.path, run.recipe)


def test_another_commit_of_the_same_source_is_resumed(run):
    run = anew(run, kept(run) | {"git_commit": "0" * 40})
    assert run.must_match_code(replicas=1, force=False) == []


def test_other_source_is_refused_whatever_the_commit(run):
    now = environment.code_sha256()
    run = anew(run, kept(run) | {"code_sha256": "0" * 64})
    with pytest.raises(RunError, match=rf"\ncode_sha256 was 0+, is {now}; --force"):
        run.must_match_code(replicas=1, force=False)
    (note,) = run.must_match_code(replicas=1, force=True)
    assert note == f"forced: code_sha256 was {'0' * 64}, is {now}"
    run = anew(run, kept(run) | {"git_commit": "1" * 40})
    with pytest.raises(RunError, match=r"code_sha256 was 0+, is .* \(git_commit was 1+, is "):
        run.must_match_code(replicas=1, force=False)


def test_a_run_of_a_version_without_the_hash_needs_force(run):
    old = {key: value for key, value in kept(run).items() if key != "code_sha256"}
    run = anew(run, old | {"git_commit": "0" * 40})
    told = r"the run has no code_sha256, .* older version \(git_commit was 0+, is .*\); --force"
    with pytest.raises(RunError, match=told):
        run.must_match_code(replicas=1, force=False)
    assert len(run.must_match_code(replicas=1, force=True)) == 1


RESUMED = """
import sys
from pathlib import Path
import cnnbench
from cnnbench import open_run
assert Path(cnnbench.__file__).parents[1] == Path.cwd()
open_run(sys.argv[1]).must_match_code(replicas=1, force=False)
"""


def test_only_a_commit_that_changes_the_source_needs_force(run, tmp_path):
    root = tmp_path / "checkout"
    source = Path(cnnbench.__file__).parent
    shutil.copytree(source, root / "cnnbench", ignore=shutil.ignore_patterns("__pycache__"))

    def commit():
        author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        for words in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "change")):
            subprocess.run(["git", *words], cwd=root, check=True)

    def resumed():
        command = [sys.executable, "-c", RESUMED, str(run.path)]
        paths = os.environ | {"PYTHONPATH": str(root)}
        return subprocess.run(command, cwd=root, env=paths, capture_output=True, text=True).stderr

    (root / "README.md").write_text("words")
    commit()
    assert resumed() == ""
    with (root / "cnnbench" / "errors.py").open("a") as file:
        file.write("# a change\n")
    commit()
    assert "the code changed since the run started\ncode_sha256 was " in resumed()


def test_the_environment_of_a_run_is_read_once(digits_run, monkeypatch):
    from cnnbench.runs import run as run_module

    read, read_environment = [], run_module.read_environment
    monkeypatch.setattr(
        run_module, "read_environment", lambda path: read.append(path) or read_environment(path)
    )
    run = run_module.open_run(digits_run.path)
    run.data(), run.settings(), run.others(), run.must_match_code(replicas=1, force=True)
    assert read == [digits_run.path]
