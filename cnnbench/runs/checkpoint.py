"""Checkpoints: arrays in safetensors and a manifest with their hashes, whole or not there.

A checkpoint is the folder `<step>/` with `arrays.safetensors` and `manifest.json`; the newest is
the one with the highest step that is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cnnbench.errors import RunError
from cnnbench.system import files

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
FORMAT = 1
# What a manifest that is not one leads to.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# What may wait to be written: a checkpoint, the best weights, and what goes with them.
AHEAD = 4


class DamagedError(RunError):
    """A checkpoint that is not whole; another kind of error says nothing of what it holds."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training continues from.

    arrays: weights, optimizer and generators, by the names that `train` gave them.
    state: the step, metrics so far and what else is not an array; plain JSON.
    """

    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint as the folder of that name, in place of an older one.

    Raises:
        RunError: the disk refuses; what was there before is untouched.
    """
    with files.new_folder(folder) as partial:
        arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
        try:
            save_file(arrays, partial / ARRAYS)
        except SafetensorError as error:  # which hides the system's error
            raise OSError(f"{error}") from None
        body = {
            "format": FORMAT,
            "files": {ARRAYS: files.sha256(partial / ARRAYS)},
            "arrays": {k: [str(v.dtype), list(v.shape)] for k, v in sorted(arrays.items())},
            "state": dict(checkpoint.state),
        }
        manifest = files.signed(body)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=True))


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint back.

    Raises:
        DamagedError: a file is missing, cut off or changed.
        RunError: the disk refuses to read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not files.is_as_signed(manifest):
            raise DamagedError("the manifest was changed or cut off", where=str(folder / MANIFEST))
        if manifest["format"] != FORMAT:
            raise RunError(
                f"checkpoint format {manifest['format']}", where=str(folder), allowed=f"{FORMAT}"
            )
        arrays, expected = folder / ARRAYS, manifest["files"][ARRAYS]
        # A device would be read for ever.
        if manifest["files"].keys() != {ARRAYS} or not arrays.is_file():
            raise DamagedError("the manifest names other files", where=str(folder / MANIFEST))
        if files.sha256(arrays) != expected:
            raise DamagedError("the file was changed or cut off", where=str(arrays))
        return Checkpoint(load_file(arrays), dict(manifest["state"]))
    except (FileNotFoundError, *DAMAGE) as error:
        raise DamagedError(f"not a whole checkpoint: {error}", where=str(folder)) from None
    except OSError as error:
        raise RunError(f"cannot read: {error.strerror or error}", where=str(folder)) from error


def newest(folder: Path) -> tuple[Checkpoint | None, list[DamagedError]]:
    """Returns the newest whole checkpoint below a folder, and what is wrong with newer ones.

    A damaged one is set aside as `<step>.damaged`, so this is for who holds the run's lock.

    Raises:
        RunError: there are checkpoints, and none of them is whole, or the disk refuses to read.
    """
    problems: list[DamagedError] = []
    for candidate in reversed(_steps(folder)):
        try:
            return load(candidate), problems
        except DamagedError as error:
            problems.append(error)
            with files.storage_errors(candidate):
                aside = candidate.with_name(f"{candidate.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                candidate.rename(aside)
    if problems or any(folder.glob("*.damaged")):
        found = "; ".join(map(str, problems)) or "all were set aside as *.damaged"
        raise RunError(f"no checkpoint is whole: {found}", where=str(folder))
    return None, []


def last(folder: Path) -> Checkpoint:
    """Returns the checkpoint of the highest step, and touches nothing.

    Raises:
        RunError: there is none, it is damaged, or the disk refuses to read.
    """
    if not (found := _steps(folder)):
        raise RunError("there is no checkpoint yet", where=str(folder))
    return load(found[-1])


def exists(folder: Path) -> bool:
    """Tells whether there is a checkpoint below a folder, whole or not."""
    return bool(_steps(folder))


def keep_last(folder: Path, count: int) -> None:
    """Deletes all but the newest checkpoints, and what an interrupted save left behind."""
    for old in _steps(folder)[:-count]:
        shutil.rmtree(old, ignore_errors=True)
    for partial in folder.glob(".[0-9]*.*"):
        shutil.rmtree(partial, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*") if path.name.isascii() and path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))
