"""Checkpoints: whole, or refused by name."""

import json
import random
import shutil

import numpy as np
import pytest

from cnnbench.errors import RunError
from cnnbench.runs import checkpoint, variables
from cnnbench.runs.checkpoint import Checkpoint
from cnnbench.training import writer as writer_module


def some(step):
    arrays = {"model/0/w": np.full((3, 4), step, np.float32), "optimizer/0/n": np.array(step)}
    return Checkpoint(arrays, {"step": step, "best": None})


@pytest.fixture
def folder(tmp_path):
    for step in (9, 10, 100):
        checkpoint.save(tmp_path / str(step), some(step))
    return tmp_path


def test_what_is_saved_is_what_is_loaded(folder):
    loaded = checkpoint.load(folder / "10")
    assert loaded.state == {"step": 10, "best": None}
    for name, array in some(10).arrays.items():
        assert np.array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype


def test_newest_is_the_highest_step_and_only_the_last_are_kept(folder):
    assert checkpoint.newest(folder)[0].state["step"] == 100
    checkpoint.keep_last(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "100"]


def test_saving_again_replaces(folder):
    checkpoint.save(folder / "10", some(11))
    assert checkpoint.load(folder / "10").state["step"] == 11
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("name", [checkpoint.ARRAYS, checkpoint.MANIFEST])
def test_no_flipped_bit_goes_unseen(folder, name):
    whole = (folder / "100" / name).read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (folder / "100" / name).write_bytes(changed)
        try:
            loaded = checkpoint.load(folder / "100")
        except RunError as error:
            assert "100" in str(error)
        else:  # white space between JSON's tokens carries nothing
            assert loaded.state == some(100).state
            assert name == checkpoint.MANIFEST


@pytest.mark.parametrize("harm", ["truncate", "empty", "missing", "no manifest", "no arrays"])
def test_the_newest_whole_one_is_used_and_the_damaged_one_set_aside(folder, harm):
    newest, arrays = folder / "100", folder / "100" / checkpoint.ARRAYS
    if harm == "truncate":
        arrays.write_bytes(arrays.read_bytes()[:-3])
    elif harm == "empty":
        arrays.write_bytes(b"")
    elif harm == "missing":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        (newest / (checkpoint.MANIFEST if harm == "no manifest" else checkpoint.ARRAYS)).unlink()
    found, problems = checkpoint.newest(folder)
    assert found.state["step"] == 10
    assert len(problems) == 1 and "100" in str(problems[0])
    assert (folder / "100.damaged").is_dir() and not newest.exists()


def test_all_damaged_is_refused_and_stays_refused(folder):
    for path in folder.iterdir():
        (path / checkpoint.MANIFEST).write_text("{}")
    for _ in range(2):
        with pytest.raises(RunError, match="no checkpoint is intact"):
            checkpoint.newest(folder)


def test_none_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "nothing") == (None, [])


def test_a_save_that_fails_leaves_the_old_one(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.save(folder / "100", some(101))
    monkeypatch.undo()
    assert checkpoint.load(folder / "100").state["step"] == 100
    assert sorted(path.name for path in folder.iterdir()) == ["10", "100", "9"]


def test_weights_of_another_network_are_refused(folder):
    from cnnbench.backend.lazy import tf

    loaded = checkpoint.load(folder / "10")
    variable = tf.Variable(np.zeros((3, 5), np.float32))
    with pytest.raises(RunError, match="another network"):
        variables.assign({"model/0/w": variable}, loaded.arrays, folder)
    with pytest.raises(RunError, match="another network"):
        variables.assign({"model/0/v": variable}, loaded.arrays, folder)
    fits = tf.Variable(np.zeros((3, 4), np.float32))
    variables.assign({"model/0/w": fits}, loaded.arrays, folder)
    assert np.all(fits.numpy() == 10)


def test_the_manifest_tells_shapes_and_hashes(folder):
    manifest = json.loads((folder / "9" / checkpoint.MANIFEST).read_text())
    assert manifest["arrays"]["model/0/w"] == ["float32", [3, 4]]
    assert len(manifest["files"][checkpoint.ARRAYS]) == 64


def test_a_writer_keeps_the_order_and_passes_on_what_the_disk_refuses(tmp_path):
    done = []

    def fail(path):
        raise RunError("cannot write: No space left on device", where=str(path))

    with writer_module.Writer() as writer:
        for number in range(20):
            writer.submit(done.append, number)
        writer.wait()
    assert done == list(range(20)) and writer.seconds >= 0
    with pytest.raises(RunError, match="No space left"), writer_module.Writer() as writer:
        writer.submit(fail, tmp_path)
        writer.submit(done.append, "after")
        writer.wait()
    assert "after" not in done
    with pytest.raises(RunError, match="No space left"), writer_module.Writer() as writer:
        writer.submit(fail, tmp_path)


def test_a_writer_finishes_what_it_began_when_the_training_ends_in_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer_module.Writer() as writer:
        writer.submit(checkpoint.save, tmp_path / "5", some(5))
        raise KeyboardInterrupt
    assert checkpoint.load(tmp_path / "5").state["step"] == 5
