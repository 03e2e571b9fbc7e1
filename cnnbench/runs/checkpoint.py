"""Checkpoints: arrays in safetensors and a manifest with their hashes, whole or not there.

A checkpoint is the folder `<step>/` with `arrays.safetensors` and `manifest.json`; the newest is
the one with the highest step that is whole.
"""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from cnnbench import files
from cnnbench.errors import RunError

ARRAYS, MANIFEST = "arrays.safetensors", "manifest.json"
FORMAT = 1
# What a manifest that is not one leads to.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# How the names of layers begin that guess what a teacher sees.
HINT = "hint_"
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


class Writer:
    """Writes in the background, one thing after the other, in the order in which it was told.

    seconds: that it kept the caller from its work, all in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._failed = False
        self._pool = ThreadPoolExecutor(1, "cnnbench-write")
        self._pending: collections.deque[Future[None]] = collections.deque()

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Has `write` called with the arguments, once what was told before is done.

        Raises:
            RunError: the disk refused something that was told before.
        """
        while len(self._pending) >= AHEAD:
            self._finish_first()
        self._pending.append(self._pool.submit(self._write, write, *arguments))

    def check(self) -> None:
        """Raises the RunError of what failed since it was told, and does not wait."""
        while self._pending and self._pending[0].done():
            self._finish_first()

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            RunError: the disk refuses.
        """
        while self._pending:
            self._finish_first()

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        """Writes, unless something before failed: what comes later counts on it."""
        if not self._failed:
            self._failed = True
            write(*arguments)
            self._failed = False

    def _finish_first(self) -> None:
        with self.counted():
            self._pending.popleft().result()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what is done within as time that writing took."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()
        self._pool.shutdown()


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


def schedule(every: int | str, first_step: int) -> Callable[[int], bool]:
    """Returns a function that says whether to save at a step, by steps or by minutes."""
    last_step, last_time = first_step, time.monotonic()

    def due(step: int) -> bool:
        nonlocal last_step, last_time
        now = time.monotonic()
        if isinstance(every, int):
            is_due = step // every > last_step // every
        else:
            is_due = now - last_time >= 60 * int(every.removesuffix("m"))
        if is_due:
            last_step, last_time = step, now
        return is_due

    return due


def variables_by_name(kind: str, variables: Iterable[Any]) -> dict[str, Any]:
    """Names Keras variables by their place and path, so that the same code finds them again."""
    return {f"{kind}/{i}/{variable.path}": variable for i, variable in enumerate(variables)}


def kept_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the network's arrays among a checkpoint's; where there are averages, those instead.

    Layers that serve training alone, as the last of the model, are left out.
    """
    kept = {name: array for name, array in arrays.items() if f"/{HINT}" not in name}
    averages = {
        name.replace("average/", "model/", 1): array
        for name, array in kept.items()
        if name.startswith("average/")
    }
    return averages or {name: kept[name] for name in kept if name.startswith("model/")}


def assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: Path) -> None:
    """Gives variables the values of a checkpoint's arrays; arrays of other kinds are passed over.

    Raises:
        RunError: names or shapes differ; nothing is assigned then.
    """
    kinds = {name.partition("/")[0] for name in variables}
    saved = {k: v for k, v in arrays.items() if k.partition("/")[0] in kinds}
    wrong = set(variables) ^ set(saved)
    wrong |= {k for k in variables.keys() & saved if tuple(variables[k].shape) != saved[k].shape}
    if wrong:
        raise RunError(f"the weights are another network's: {sorted(wrong)[:5]}", where=str(where))
    for name, variable in variables.items():
        variable.assign(saved[name])
