"""Errors of the system and of libraries at each seam: named, and nothing said that is not so."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, here
from PIL import Image
from safetensors import SafetensorError

from cnnbench import load_recipe, open_run
from cnnbench.backend.lazy import tensorflow_errors, tf
from cnnbench.data import images
from cnnbench.data.pixels import BadImageError
from cnnbench.data.sources import tfds_reader
from cnnbench.errors import DataError, MissingDataError, RecipeError, RunError
from cnnbench.runs import checkpoint, create
from cnnbench.runs.checkpoint import Checkpoint, DamagedError
from cnnbench.system import files

DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
SYSTEM = (errno.EACCES, errno.EIO, errno.ENOSPC, errno.EROFS)


def fails(error):
    """Returns a function that raises an error, whatever it is called with."""

    def fail(*_arguments, **_options):
        raise error

    return fail


@pytest.fixture
def run(small_run, tmp_path):
    shutil.copytree(small_run.path, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "1", Checkpoint({"a": np.zeros(3, np.float32)}, {"step": 1}))
    return tmp_path / "1"


@pytest.mark.parametrize("code", SYSTEM)
def test_a_recipe_that_cannot_be_read(code, tmp_path, monkeypatch):
    (tmp_path / "r.yaml").write_text(TINY)
    monkeypatch.setattr(Path, "open", fails(OSError(code, os.strerror(code))))
    with pytest.raises(RecipeError) as found:
        load_recipe(tmp_path / "r.yaml")
    assert str(found.value) == f"{tmp_path}/r.yaml: cannot read the recipe: {os.strerror(code)}"


@pytest.mark.parametrize("code", SYSTEM)
def test_a_run_that_cannot_be_created(code, tmp_path, monkeypatch):
    (tmp_path / "r.yaml").write_text(TINY)
    recipe = load_recipe(tmp_path / "r.yaml")
    monkeypatch.setattr(Path, "mkdir", fails(OSError(code, os.strerror(code))))
    with pytest.raises(RunError) as found, create.new_run(tmp_path / "run", recipe):
        pass
    said = f"{tmp_path}/run: cannot create the run: {os.strerror(code)}"
    assert str(found.value) == said


def test_a_run_directory_that_cannot_be_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", fails(DENIED))
    with pytest.raises(RunError, match="cannot read: Permission denied"):
        create.must_be_free(tmp_path)


@pytest.mark.parametrize("code", SYSTEM)
def test_a_checkpoint_that_cannot_be_written(code, tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    monkeypatch.setattr(checkpoint, "save_file", fails(SafetensorError(os.strerror(code))))
    with pytest.raises(RunError, match=f"cannot write: {os.strerror(code)}"):
        checkpoint.save(tmp_path / "1", Checkpoint({}, {}))
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("error", [DENIED, OSError(errno.EIO, os.strerror(errno.EIO))])
def test_a_checkpoint_that_cannot_be_read_is_not_damaged(error, saved, monkeypatch):
    monkeypatch.setattr(Path, "read_text", fails(error))
    with pytest.raises(RunError, match=f"cannot read: {error.strerror}") as found:
        checkpoint.newest(saved.parent)
    assert not isinstance(found.value, DamagedError) and "damaged" not in str(found.value)
    assert saved.is_dir()


def test_arrays_that_cannot_be_mapped_are_not_damaged(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_file", fails(SafetensorError("Cannot allocate memory")))
    with pytest.raises(RunError, match="cannot read: Cannot allocate memory") as found:
        checkpoint.newest(saved.parent)
    assert not isinstance(found.value, DamagedError) and saved.is_dir()


@pytest.mark.parametrize("name", [checkpoint.MANIFEST, checkpoint.ARRAYS])
def test_a_missing_file_of_a_checkpoint_is_called_missing(name, saved):
    (saved / name).unlink()
    with pytest.raises(DamagedError) as found:
        checkpoint.load(saved)
    assert str(found.value) == f"{saved / name}: the file is missing"


@pytest.mark.parametrize("name", ["environment.json", "recipe.yaml"])
def test_a_run_without_read_permission(name, run, monkeypatch):
    opened = Path.open

    def denied(path, *arguments, **options):
        if path.name == name:
            raise DENIED
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(RunError) as found:
        open_run(run)
    assert str(found.value) == f"{run / name}: cannot read: Permission denied"


def test_metrics_and_weights_without_read_permission(run, monkeypatch):
    opened = open_run(run)
    monkeypatch.setattr(Path, "open", fails(DENIED))
    with pytest.raises(RunError) as found:
        opened.metrics()
    assert str(found.value) == f"{run}/metrics.jsonl: cannot read: Permission denied"
    with pytest.raises(RunError) as found:
        opened.weights_sha256()
    assert str(found.value) == f"{run}/best/manifest.json: cannot read: Permission denied"
    monkeypatch.undo()
    (run / "best/manifest.json").unlink()
    with pytest.raises(RunError, match="the run has no weights"):
        opened.weights_sha256()


def test_a_run_whose_name_the_system_refuses():
    name = "a" * 300
    done = here("eval", name)
    assert done.returncode == 6 and "Traceback" not in done.stderr
    assert done.stderr == f"error: {name}/stages.yaml: cannot read: File name too long\n"


def test_an_image_for_which_memory_lacks_is_not_called_bad(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", fails(MemoryError()))
    with pytest.raises(DataError, match="not enough memory to decode the image") as found:
        images.read(tmp_path / "a.png", 3)
    assert not isinstance(found.value, BadImageError)
    with pytest.raises(DataError, match="not enough memory to decode the image") as found:
        images.decode_floats((tmp_path / "a.png").read_bytes(), 3, "a.png")
    assert not isinstance(found.value, BadImageError)


@pytest.mark.parametrize("code", SYSTEM)
def test_an_image_that_cannot_be_read(code, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", fails(OSError(code, os.strerror(code))))
    with pytest.raises(DataError) as found:
        images.read(tmp_path / "a.png", 3)
    assert str(found.value) == f"{tmp_path}/a.png: cannot read the image: {os.strerror(code)}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (tf.errors.PermissionDeniedError(None, None, "shard; Permission denied"), "cannot read"),
        (tf.errors.NotFoundError(None, None, "shard; No such file"), "cannot read"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), "cannot read"),
        (tf.errors.DataLossError(None, None, "corrupted record at 0"), "is damaged"),
        (tf.errors.OutOfRangeError(None, None, "truncated record at 0"), "is damaged"),
    ],
)
def test_records_that_cannot_be_read_are_not_damaged(error, said):
    text = str(tfds_reader.unreadable(error, "somewhere"))
    assert text.startswith("somewhere: ") and ("damaged" in text) == (said == "is damaged")
    assert said in text and error.message in text


def test_another_version_of_a_data_set_is_named(tmp_path):
    with pytest.raises(MissingDataError) as found:
        tfds_reader._prepared("cifar10", tmp_path, False)
    assert "is needed" not in str(found.value)
    (tmp_path / "cifar10/2.0.0").mkdir(parents=True)
    (tmp_path / "cifar10/2.0.0/dataset_info.json").write_text("{}")
    with pytest.raises(MissingDataError) as found:
        tfds_reader._prepared("cifar10", tmp_path, False)
    said = "version 3.0.2 is needed; data: {name: tfds, builder: 'cifar10:2.0.0'} takes what is"
    assert said in str(found.value)


def test_an_export_for_which_memory_lacks_is_no_failed_write(tmp_path):
    memory = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with pytest.raises(RunError) as found, tensorflow_errors(tmp_path, "export"):
        raise memory
    assert str(found.value) == f"{tmp_path}: cannot export: OOM when allocating tensor"


@pytest.mark.parametrize("code", SYSTEM)
def test_a_result_that_cannot_be_written(code, tmp_path, monkeypatch):
    (tmp_path / "eval.json").write_text("before")
    monkeypatch.setattr(os, "fsync", fails(OSError(code, os.strerror(code))))
    with pytest.raises(RunError) as found:
        files.write_json(tmp_path / "eval.json", {})
    assert str(found.value) == f"{tmp_path}/eval.json: cannot write: {os.strerror(code)}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["eval.json"]
    assert (tmp_path / "eval.json").read_text() == "before"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), DENIED, SafetensorError("odd"), UnicodeEncodeError("ascii", "é", 0, 1, "no")],
)
def test_what_nothing_foresaw_is_one_line_and_exit_code_70(error, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("cnnbench.cli.inspect.doctor.callback", fails(error))
    done = here("doctor")
    assert done.returncode == 70 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    (kept,) = tmp_path.iterdir()
    assert str(kept) in done.stderr and "Traceback" in kept.read_text()
