"""The process that the command line owns: its environment, its output, its unexpected errors."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, here
from conftest import cnnbench as command_line

from cnnbench.cli import process
from cnnbench.cli.options import answer
from cnnbench.errors import RecipeError
from cnnbench.recipe import yaml_tree
from cnnbench.recipe.load import load_recipe
from cnnbench.report import tables, terminal
from cnnbench.system import files, locks
from cnnbench.system.output import discard

SHORT = ("--set", "train.epochs=1", "--set", "schedule.warmup_epochs=0", "--no-tune")


def environment(**changes):
    """This process's environment with variables that are set, or unset with None."""
    return {k: v for k, v in {**os.environ, **changes}.items() if v is not None}


def raised(error):
    """An error as it is after it was raised."""
    try:
        raise error
    except Exception as caught:  # the one that was given
        return caught


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "Input/output error", "a.bin"), "a.bin: Input/output error"),
        (OSError("no number"), "OSError: no number"),
        (MemoryError(), "MemoryError"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "UnicodeEncodeError: 'ascii' codec"),
    ],
)
def test_a_report_is_one_line_and_the_traceback_is_in_a_file(error, said, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = process.report(raised(error))
    (kept,) = tmp_path.iterdir()
    assert text.startswith(said) and "\n" not in text
    assert text.endswith(f"; unexpected: the traceback is in {kept}")
    assert "Traceback" in kept.read_text() and "raise error" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_report_without_a_folder_for_it_has_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert "Traceback" in process.report(raised(ValueError("odd")))


@pytest.mark.slow
def test_the_environment_of_a_hostile_user(tmp_path):
    """A training with everything at once that a user's environment may hold."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / ".keras").mkdir()
    text = '{"floatx": "float16", "backend": "jax", "image_data_format": "channels_first"}'
    (tmp_path / ".keras/keras.json").write_text(text)
    hostile = environment(
        KERAS_BACKEND="torch", KERAS_HOME=str(tmp_path / ".keras"), MPLBACKEND="Qt5Agg",
        PYTHONIOENCODING="ascii", LANG="C", XDG_CACHE_HOME=None, HOME=None,
    )  # fmt: skip
    done = command_line("train", "tiny.yaml", *SHORT, "--run-dir", "é", cwd=tmp_path, env=hostile)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "é\n" and (tmp_path / "é/saved_model").is_dir()
    plain = here("train", "tiny.yaml", *SHORT, "--run-dir", "plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    both = (tmp_path / run / "best/manifest.json" for run in ("é", "plain"))
    first, second = (file.read_text().split('"arrays"')[0] for file in both)
    assert first == second


@pytest.mark.slow
def test_a_training_goes_on_when_its_readers_are_gone(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "-m", "cnnbench", "train", "tiny.yaml", *SHORT, "--run-dir", "run"]
    out, into = os.pipe()
    err, also = os.pipe()
    started = subprocess.Popen(command, cwd=tmp_path, stdout=into, stderr=also)
    for end in (out, into, err, also):
        os.close(end)
    assert started.wait(120) == 0
    assert (tmp_path / "run/finished.json").is_file()
    assert (tmp_path / "run/saved_model").is_dir()


def test_the_process_uses_tensorflow_and_no_settings_of_the_user(monkeypatch):
    for name in ("KERAS_BACKEND", "KERAS_HOME", "MPLBACKEND", *process.UNSET):
        monkeypatch.setenv(name, "of the user")
    process.own()
    assert not set(process.UNSET) & os.environ.keys()
    found = [os.environ[name] for name in ("KERAS_BACKEND", "KERAS_HOME", "MPLBACKEND")]
    assert found == ["tensorflow", str(files.cache_folder("keras")), "agg"]


@pytest.mark.parametrize(
    ("home", "cache", "found"),
    [("/h", None, "/h/.cache/cnnbench/x"), ("/h", "/c", "/c/cnnbench/x"), ("/h", "", "/h/.cache/"),
     ("/h", "c", "/h/.cache/"), ("/h", "~/c", "/h/c/"), ("h", None, "/t/cnnbench-")],
)  # fmt: skip
def test_the_cache_is_never_in_the_current_folder(home, cache, found, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/t")
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if cache is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert str(files.cache_folder("x")).startswith(found)


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # of a number without a name
    assert files.cache_folder("x").is_absolute()


def test_output_without_a_reader_goes_nowhere():
    out, into = os.pipe()
    with os.fdopen(into, "w") as stream:
        os.close(out)
        discard(stream)
        stream.write("x" * 100_000)
        stream.flush()


@pytest.fixture(params=[0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_permissions_of_the_umask_whoever_wrote_them(umask, tmp_path):
    files.write_json(tmp_path / "a.json", {})
    with files.new_folder(tmp_path / "b") as partial:
        (partial / "sub").mkdir(mode=0o700)
        for name, mode in (("sub/private", 0o600), ("open", 0o666)):
            (partial / name).write_text("")
            (partial / name).chmod(mode)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    plain, folder = 0o666 & ~umask, 0o777 & ~umask
    assert found == {"a.json": plain, "private": plain, "open": plain, "b": folder, "sub": folder}


@pytest.mark.parametrize("code", files.UNSUPPORTED)
def test_a_file_system_that_lacks_something_is_written_to(code, tmp_path, monkeypatch):
    def lacks(*_arguments):
        raise OSError(code, os.strerror(code))

    def denied(*_arguments):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    fsync = os.fsync
    folders = lambda handle: lacks() if stat.S_ISDIR(os.fstat(handle).st_mode) else fsync(handle)  # noqa: E731 - one line
    monkeypatch.setattr(os, "fsync", folders)
    monkeypatch.setattr("pathlib.Path.chmod", denied)
    monkeypatch.setattr("fcntl.flock", lacks)
    with files.new_folder(tmp_path / "b") as partial:
        (partial / "private").touch(mode=0o600)
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "b/private").is_file() and (tmp_path / "a.json").is_file()
    handle = locks.open_lock(tmp_path / "lock")
    assert locks.lock(handle, lambda holder: pytest.fail(holder)) is False
    os.close(handle)


def overridden(text):
    tree = yaml_tree.parse("{name: a, data: {path: b}}", "r.yaml")
    yaml_tree.override(tree, f"data.path={text}")
    return tree.plain()["data"]["path"]


@pytest.mark.parametrize(
    "text",
    ["a#b", "a #b", "#b", "a: b", "C:\\x", "@home", "a@b", "~/x", "it's", 'say "x"', "a, b", "&a",
     "*a", "!tag", "%x", "|", ">", "- a", "? a", "a]b", "`x`", "é 猫", "$HOME", "a=b", "no",
     " a ", "a\nb"],
)  # fmt: skip
def test_an_override_is_text_as_it_stands(text):
    assert overridden(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 0.001), ("true", True), ("null", None), ("~", None), ("", None),
     ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ('"3"', "3"), ("'it''s'", "it's")],
)  # fmt: skip
def test_an_override_can_be_yaml(text, value):
    assert overridden(text) == value


@pytest.mark.parametrize("text", ["\udce9", "[", "{a", '"x', "'x", "a\n- b: ["])
def test_an_override_that_is_neither_is_refused(text):
    with pytest.raises(RecipeError):
        overridden(text)


@pytest.mark.parametrize("text", ["2024", "007", "1e3", "~", "true", "null", "[2024]", "{a: b}"])
def test_an_override_of_a_key_that_is_text_is_text(text, small):
    settings = ("data={name: image_folder, path: x}", f"data.path={text}")
    assert load_recipe(small, settings).data.path == text


def test_a_number_in_a_file_where_text_is_wanted_is_refused_with_what_to_write(small):
    text = small.read_text()
    line = text.splitlines().index("name: small")
    small.write_text(text.replace("name: small", "name: 2024"))
    with pytest.raises(RecipeError, match=f":{line + 1}: name: 2024; .*quotation marks"):
        load_recipe(small)


@pytest.mark.parametrize("key", ["model.weights", "init.run", "compress.0.teacher"])
def test_an_empty_path_is_not_the_current_folder(key, small):
    settings = ("compress=[{name: distill, teacher: a}]", f'{key}=""')
    with pytest.raises(RecipeError, match=f"{key}: ''; .*at least 1 character"):
        load_recipe(small, settings)


@pytest.mark.parametrize(
    ("option", "said"),
    [("", "the path is empty"), ("gs://bucket/x", "is an address"), ("https://x.y/a", "local")],
)
def test_an_argument_that_is_no_path_is_refused(option, said):
    for words in (["eval", option], ["eval", "x", "--data-path", option], ["predict", "x", option]):
        done = here(*words)
        assert done.returncode == 2 and said in done.stderr


def test_a_full_disk_under_the_output_is_named():
    command = [sys.executable, "-m", "cnnbench", "list", "optimizers"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 6
        assert done.stderr == "error: the output: cannot write: No space left on device\n"
        command[-2:] = ["train", "none.yaml"]
        assert subprocess.run(command, stderr=full, check=False).returncode == 2


def test_a_training_goes_on_when_its_log_is_full(monkeypatch):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        console = terminal._Console(file=full)
        console.print("one")
        console.print("two")
        assert console.quiet


def test_colons_in_names_are_no_emoji(capsys):
    answer({}, as_json=False, table=lambda _: tables.facts({"file": ":smile:.jpg"}))
    assert ":smile:.jpg" in capsys.readouterr().out


def test_an_unset_variable_is_no_folder(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "")
    assert "empty" not in here("eval", "none").stderr


def test_a_tilde_is_the_home_folder_in_arguments_and_options(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bad.yaml").write_text("name: [")
    done = here("train", "~/bad.yaml")
    assert done.returncode == 2 and f"{tmp_path}/bad.yaml:1" in done.stderr
    done = here("eval", "~nobody-of-that-name/run")
    assert done.returncode == 6 and "~nobody-of-that-name/run: not a run" in done.stderr
