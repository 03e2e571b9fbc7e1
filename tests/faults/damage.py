"""Files of a run that are no longer what was written: named, set aside or refused, never used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cnnbench import open_run
from cnnbench.errors import RunError
from cnnbench.runs import checkpoint
from cnnbench.runs.checkpoint import ARRAYS, MANIFEST, Checkpoint

from .harness import (
    SHORT,
    Training,
    Try,
    as_bytes,
    files_of_a_run,
    must_equal,
    newest_step,
    outcome,
    read_all,
    row,
    uninterrupted,
    unpack,
)

# Kinds of files of a run directory; those of a checkpoint are the newest one's.
KINDS = (
    "recipe.yaml", "environment.json", "metrics.jsonl", "finished.json", f"best/{ARRAYS}",
    f"best/{MANIFEST}", f"checkpoints/{{}}/{ARRAYS}", f"checkpoints/{{}}/{MANIFEST}",
)  # fmt: skip
HARMS = ("cut off", "empty", "missing", "end is zeros")
# In the third epoch, with several checkpoints behind.
LONGER, INTERRUPTED_AT = "train.epochs=3", 50


@row(8, "A flipped bit, in each of 8 kinds of files: never silent", full=800, short=16)
def flipped(count: int) -> Iterator[Try]:
    for number in range(count):
        yield partial(_flipped, kind=KINDS[number % len(KINDS)])


def _flipped(folder: Path, random: random.Random, *, kind: str) -> None:
    """Flips a bit; what is used after must be what was used before, or the file be named."""
    content = files_of_a_run(SHORT)
    wanted, newest = _used(unpack(content, folder / "whole")), newest_step(folder / "whole")
    path = unpack(content, folder / "run")
    file = path / kind.format(newest)
    data = bytearray(file.read_bytes())
    place, bit = random.randrange(len(data)), random.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    # A checkpoint is named by its folder, where a file of it cannot be told.
    name = str(file.parent if file.name in (ARRAYS, MANIFEST) else file)
    try:
        found = _used(path)
        if found["set aside"]:
            assert name in found["set aside"][0], found["set aside"]
            shutil.rmtree(folder / "whole" / "checkpoints" / str(newest))
            wanted = _used(folder / "whole") | {"set aside": found["set aside"]}
        must_equal(found, wanted)
    except RunError as error:
        assert name in str(error), f"bit {bit} of byte {place} of {kind}: {error}"
    except Exception as error:  # told with its place
        raise AssertionError(f"bit {bit} of byte {place} of {kind}: {error!r}") from error


def _used(path: Path) -> dict[str, Any]:
    """Does with a run's files what resume, eval and export do; returns what they go on with.

    Not among it is what environment.json tells people, as the machine and the command, or has
    compared with what is so when a run is resumed, as the versions.
    """
    run = open_run(path)
    newest, damaged = checkpoint.newest(run.checkpoints)
    assert newest is not None
    run.write_metrics(newest.state["rows"])
    environment = json.loads((path / "environment.json").read_text())
    return {
        "recipe": run.recipe,
        "data": run.data(),
        "settings": run.settings(),
        "replicas": environment["runtime"]["replicas"],
        "finished": run.finished,
        "newest": _content(newest),
        "best": _content(checkpoint.load(run.best)),
        "metrics": (path / "metrics.jsonl").read_bytes(),
        "set aside": [str(error) for error in damaged],
    }


def _content(saved: Checkpoint) -> tuple[dict[str, Any], Any]:
    return {name: as_bytes(array) for name, array in saved.arrays.items()}, saved.state


@row(9, "The newest checkpoint damaged: named, set aside, the one before used", full=40)
def newest_damaged(count: int) -> Iterator[Try]:
    for number in range(count):
        yield partial(_newest_damaged, resumed=number % 4 == 0)


def _newest_damaged(folder: Path, random: random.Random, *, resumed: bool) -> None:
    training = Training(folder, LONGER)
    unpack(files_of_a_run(LONGER, interrupted_at=INTERRUPTED_AT), training.run)
    folders = _checkpoints(training.run)
    _damage(folders[-1], random)
    if resumed:
        output = training.finish()
        assert f"damaged and set aside: {folders[-1]}" in output, output
        assert f"resumed at step {folders[-2].name}" in output, output
        must_equal(outcome(training.run), uninterrupted(LONGER))
    else:
        found, damaged = checkpoint.newest(training.run / "checkpoints")
        assert found is not None and str(found.state["step"]) == folders[-2].name
        assert len(damaged) == 1 and str(folders[-1]) in str(damaged[0]), damaged
    aside = folders[-1].with_name(f"{folders[-1].name}.damaged")
    assert aside.is_dir(), f"{aside} is not there"


@row(10, "All checkpoints damaged or gone: refused with exit code 6, nothing begun anew", full=10)
def all_damaged(count: int) -> Iterator[Try]:
    for number in range(count):
        yield partial(_all_damaged, gone=number % 5 == 4)


def _all_damaged(folder: Path, random: random.Random, *, gone: bool) -> None:
    training = Training(folder, LONGER)
    unpack(files_of_a_run(LONGER, interrupted_at=INTERRUPTED_AT), training.run)
    for each in _checkpoints(training.run):
        if gone:
            shutil.rmtree(each)
        else:
            _damage(each, random)
    before = read_all(training.run)
    for _ in range(2):  # the second time, all are set aside
        command = training.start()
        code = command.wait()
        assert code == 6 and "checkpoint" in command.output, f"exit code {code}: {command.output}"
        after = read_all(training.run)
        for name in ("metrics.jsonl", f"best/{ARRAYS}", f"best/{MANIFEST}"):
            assert after[name] == before[name], f"{name} changed"
        assert not _checkpoints(training.run), "there are checkpoints under their own names"


def _checkpoints(path: Path) -> list[Path]:
    """Returns the folders of a run's checkpoints, the newest last."""
    folders = [each for each in (path / "checkpoints").iterdir() if each.name.isdecimal()]
    return sorted(folders, key=lambda each: int(each.name))


def _damage(folder: Path, random: random.Random) -> None:
    """Does one of HARMS to one file of a checkpoint, or takes both away."""
    name, harm = random.choice((ARRAYS, MANIFEST, None)), random.choice(HARMS)
    if name is None:
        for file in folder.iterdir():
            file.unlink()
        return
    file = folder / name
    data = file.read_bytes()
    kept = random.randrange(1, len(data))
    if harm == "missing":
        file.unlink()
    else:
        changed = {
            "cut off": data[:kept],
            "empty": b"",
            "end is zeros": data[:kept].ljust(len(data), b"\0"),
        }
        file.write_bytes(changed[harm])
