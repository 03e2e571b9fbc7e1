"""Checkpoints: arrays in safetensors and a manifest with their hashes, written atomically.

A checkpoint is the folder `<step>/` with `arrays.safetensors` and `manifest.json`. The newest
checkpoint is the intact one with the highest step.
"""

from __future__ import annotations

import json
import shutil
import stat
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
# Errors that a damaged manifest can raise.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# Pending writes of the background writer: best weights, metrics, a checkpoint, old ones to delete.
MAX_PENDING = 4


class DamagedError(RunError):
    """A checkpoint is damaged. Any other error says nothing about its contents."""


@dataclass(frozen=True)
class Checkpoint:
    """The state that training resumes from.

    arrays: weights, optimizer and random generator states by name, as in `State.variables`.
    state: the step, the metrics so far and other values that are not arrays; JSON.
    """

    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint to a folder, atomically replacing an older one.

    Raises:
        RunError: it cannot be written; the older one is unchanged.
    """
    with files.new_folder(folder) as partial:
        arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
        try:
            save_file(arrays, partial / ARRAYS)
        except SafetensorError as error:  # wraps the OSError
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
    """Loads a checkpoint and verifies its hashes.

    Raises:
        DamagedError: a file is missing, truncated or changed.
        RunError: it cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not files.is_as_signed(manifest):
            raise DamagedError(
                "the manifest was changed or truncated", where=str(folder / MANIFEST)
            )
        if manifest["format"] != FORMAT:
            raise RunError(
                f"checkpoint format {manifest['format']}", where=str(folder), allowed=f"{FORMAT}"
            )
        arrays, expected = folder / ARRAYS, manifest["files"][ARRAYS]
        # Only a regular file: reading a device might never end.
        if manifest["files"].keys() != {ARRAYS}:
            raise DamagedError("the manifest names other files", where=str(folder / MANIFEST))
        if not stat.S_ISREG(arrays.stat().st_mode):
            raise DamagedError("not a file", where=str(arrays))
        if files.sha256(arrays) != expected:
            raise DamagedError("the file was changed or truncated", where=str(arrays))
        return Checkpoint(load_file(arrays), dict(manifest["state"]))
    except FileNotFoundError as error:
        raise DamagedError("the file is missing", where=str(error.filename)) from None
    except DAMAGE as error:
        raise DamagedError(f"damaged checkpoint: {error}", where=str(folder)) from None
    except (OSError, SafetensorError) as error:  # the latter, of intact arrays, wraps the former
        where = getattr(error, "filename", None) or folder
        raise RunError(f"cannot read: {files.why(error)}", where=str(where)) from error


def newest(folder: Path) -> tuple[Checkpoint | None, list[DamagedError]]:
    """Returns the newest intact checkpoint in a folder, and the errors of damaged newer ones.

    Renames damaged checkpoints to `<step>.damaged`, so the caller must hold the run's lock.

    Raises:
        RunError: there are checkpoints but none is intact, or one cannot be read.
    """
    problems: list[DamagedError] = []
    for candidate in reversed(_steps(folder)):
        try:
            return load(candidate), problems
        except DamagedError as error:
            problems.append(error)
            with files.storage_errors(candidate, "set the damaged checkpoint aside"):
                aside = candidate.with_name(f"{candidate.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                candidate.rename(aside)
    if problems or any(folder.glob("*.damaged")):
        found = "; ".join(map(str, problems)) or "all were set aside as *.damaged"
        raise RunError(f"no checkpoint is intact: {found}", where=str(folder))
    return None, []


def last(folder: Path) -> Checkpoint:
    """Returns the checkpoint with the highest step, without renaming anything.

    Raises:
        RunError: there is none, or it is damaged or cannot be read.
    """
    found = _steps(folder)
    if not found:
        raise RunError("there is no checkpoint yet", where=str(folder))
    return load(found[-1])


def exists(folder: Path) -> bool:
    """Returns whether a folder contains a checkpoint, intact or not."""
    return bool(_steps(folder))


def keep_last(folder: Path, count: int) -> None:
    """Deletes all but the newest `count` checkpoints, and leftovers of interrupted saves."""
    for old in _steps(folder)[:-count]:
        shutil.rmtree(old, ignore_errors=True)
    for partial in folder.glob(".[0-9]*.*"):
        shutil.rmtree(partial, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Returns the folders of the checkpoints, in the order of their steps."""
    found = [path for path in folder.glob("*") if path.name.isascii() and path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))
