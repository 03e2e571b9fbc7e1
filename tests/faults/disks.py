"""Disks that fail: no space, errors of the device, no permission."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnnbench.runs import checkpoint

from .checks import check, check_error, cnnbench, spread
from .harness import Try, must_equal, outcome, read_all, row
from .syscalls import (
    NEW,
    OLD,
    RECIPE,
    Call,
    act,
    calls_of,
    check_goes_on,
    make_run,
    saved_steps,
)

# What changes files or their names; each also by its newer name.
WRITES = "write|writev|pwrite64|pwritev|ftruncate|fallocate|copy_file_range|sendfile"
RENAMES, FOLDERS = "rename|renameat|renameat2", "mkdir|mkdirat"


class Disk:
    """A disk of a few megabytes, mounted in a name space of its own, which needs no root.

    path: where processes in the name space see it.
    seen: where this process does.
    """

    def __init__(self, path: Path, holder: subprocess.Popen):
        self.path, self._holder = path, holder
        self.seen = Path(f"/proc/{holder.pid}/root{path}")

    def shell(self, command: str) -> None:
        """Runs a command of the shell in the name space."""
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.write(f"{command} && echo done || echo failed\n")
        self._holder.stdin.flush()
        if self._holder.stdout.readline() != "done\n":
            raise RuntimeError(f"no mounts without root on this machine: {command}")

    def cnnbench(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        """Runs the command line in the name space."""
        inside = ["nsenter", "--user", "--mount", "--preserve-credentials"]
        return cnnbench(
            *arguments, before=(*inside, "--target", str(self._holder.pid)), **environment
        )

    def leave(self, free: int, place: str = "") -> None:
        """Fills the disk up to so many free bytes."""
        folder = self.seen / place
        room = os.statvfs(folder)
        with (folder / "ballast").open("wb") as file:
            size = room.f_bavail * room.f_bsize - free
            file.write(bytes(max(0, size)))

    def clear(self, place: str = "") -> None:
        """Gives back what `leave` took."""
        (self.seen / place / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[Disk]:
    """Mounts a disk below a folder for as long as the context lasts."""
    place = folder / "disk"
    place.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-s"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        disk = Disk(place, holder)
        try:
            disk.shell(f"mount -t tmpfs -o size={megabytes}m tmpfs {place}")
            yield disk
        finally:
            holder.kill()


@functools.cache
def _reference() -> tempfile.TemporaryDirectory:
    """Holds `recipe.yaml` and a finished run of it with a TFLite export, `run/`."""
    held = tempfile.TemporaryDirectory(prefix="cnnbench-reference-")
    place = Path(held.name)
    (place / "recipe.yaml").write_text(RECIPE)
    done = cnnbench("train", place / "recipe.yaml", "--no-tune", "--run-dir", place / "run")
    check(done.returncode == 0, f"training failed by itself: {done.stderr}")
    done = cnnbench("export", place / "run", "--tflite", "--no-verify")
    check(done.returncode == 0, f"export failed by itself: {done.stderr}")
    return held


def reference() -> Path:
    """Returns the folder of the recipe and the finished run that others are compared with."""
    return Path(_reference().name)


def size_of(folder: Path) -> int:
    """Returns the bytes that a folder takes on a disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def train_on(disk: Disk, *, resume: bool = False) -> subprocess.CompletedProcess:
    """Trains the reference's recipe on a disk."""
    # The code may be worked on while faults are made.
    start = ("--resume", "--force") if resume else (reference() / "recipe.yaml", "--no-tune")
    return disk.cnnbench("train", *start, "--run-dir", disk.path / "run")


def check_can_be_finished(disk: Disk) -> None:
    """Raises unless a run goes on, now that the disk is well, and ends as if nothing had been."""
    run = disk.seen / "run"
    if (run / "finished.json").is_file():
        done = disk.cnnbench("export", disk.path / "run", "--saved-model", "--no-verify")
    else:
        done = train_on(disk, resume=(run / "recipe.yaml").is_file())
    check(done.returncode == 0, f"it does not go on: {done.stderr[-600:]}")
    must_equal(outcome(run), outcome(reference() / "run"))
    check((run / "saved_model/saved_model.pb").is_file(), "no SavedModel")


NO_SPACE = os.strerror(errno.ENOSPC)


def full_while_training(share: float, folder: Path, _: random.Random) -> None:
    """Trains where only a share of what a run takes is free."""
    run = reference() / "run"
    taken = size_of(run) - size_of(run / "exports")  # which training does not write
    with small_disk(folder) as disk:
        disk.leave(int(share * taken))
        done = train_on(disk)
        check_error(done, 6, NO_SPACE, str(disk.path))
        checkpoint.newest(disk.seen / "run/checkpoints")  # raises if none is whole
        disk.clear()
        check_can_be_finished(disk)


def full_while_logging(folder: Path, _: random.Random) -> None:
    """Resumes where TensorBoard's events have no room, and all else has."""
    with small_disk(folder) as disk:
        shutil.copytree(reference() / "run", disk.seen / "run")
        for name in ("finished.json", "metrics.jsonl"):
            (disk.seen / "run" / name).unlink()
        steps = sorted((disk.seen / "run/checkpoints").iterdir(), key=lambda path: int(path.name))
        shutil.rmtree(steps[-1])
        disk.shell(f"mount -t tmpfs -o size=4k tmpfs {disk.path}/run/tensorboard")
        disk.leave(0, "run/tensorboard")
        done = train_on(disk, resume=True)
        check_error(done, 6, NO_SPACE, "tensorboard")
        disk.clear("run/tensorboard")
        disk.shell(f"umount {disk.path}/run/tensorboard")
        check_can_be_finished(disk)


def full_while_writing(
    arguments: Sequence[str], outputs: str, share: float, folder: Path, _: random.Random
) -> None:
    """Runs a command on a finished run where only a share of its output's size is free."""
    with small_disk(folder) as disk:
        run = disk.seen / "run"
        shutil.copytree(reference() / "run", run)
        before = read_all(run)
        size = size_of(run / outputs) if outputs else 0
        disk.leave(int(share * size))
        done = disk.cnnbench(arguments[0], disk.path / "run", *arguments[1:])
        check_error(done, 6, NO_SPACE, str(disk.path))
        check(read_all(run) | {"lock": b""} == before | {"lock": b""}, "the run changed")
        disk.clear()
        done = disk.cnnbench(arguments[0], disk.path / "run", *arguments[1:])
        check(done.returncode == 0, f"it does not work again: {done.stderr[-600:]}")


def full_scratch(share: float, folder: Path, _: random.Random) -> None:
    """Exports where the folder of temporary files is full, and the run's is not."""
    with small_disk(folder) as disk:
        run = folder / "run"
        shutil.copytree(reference() / "run", run)
        before = read_all(run)
        disk.leave(int(share * size_of(run / "saved_model")))
        arguments = ("export", run, "--saved-model", "--no-verify")
        done = disk.cnnbench(*arguments, TMPDIR=str(disk.path))
        check_error(done, 6, NO_SPACE, str(disk.path))
        check(read_all(run) == before, "the run changed")
        disk.clear()
        done = disk.cnnbench(*arguments, TMPDIR=str(disk.path))
        check(done.returncode == 0, f"it does not work again: {done.stderr[-600:]}")


def refused(action: str, call: Call, error: str, folder: Path, _: random.Random) -> None:
    """Does an action while one system call ends with an error; then again, without."""
    run = folder / "run"
    make_run(run)
    before, names_before = read_all(run), {path.name for path in run.iterdir()}
    done = act(action, run, inject=f"{call.name}:error={error}:when={call.count}")
    code = getattr(errno, error)
    check_error(done, 6, os.strerror(code), str(folder))
    if action != "save":
        check(read_all(run) | {"lock": b""} == before | {"lock": b""}, "the run changed")
        left = {path.name for path in run.iterdir()} - names_before - {"lock"}
        check(not left, f"left behind: {left}")
    check(set(saved_steps(run)) <= {OLD, NEW}, "the old state is lost")
    done = act(action, run)
    check(done.returncode == 0, f"it does not work again: {done.stderr}")
    if action == "save":
        check(saved_steps(run) == (NEW, NEW), "the new state is not there")
        check_goes_on(run)


def _pick(action: str, names: str, share: float) -> Call:
    """Returns the call that is at a share of an action's calls of some names."""
    found = [call for call in calls_of(action) if re.fullmatch(names, call.name)]
    return found[round(share * (len(found) - 1))]


@row(6, "no space in checkpoint, log and export: exit 6 by name, old state whole", full=20)
def no_space(count: int) -> Iterator[Try]:
    """A full disk under the real commands, and single refused calls."""
    tries: list[Try] = [
        functools.partial(refused, action, _pick(action, names, share), "ENOSPC")
        for action, names, share in (
            ("save", WRITES, 0.0), ("save", WRITES, 0.5), ("save", WRITES, 1.0),
            ("save", "fsync", 0.0), ("save", FOLDERS, 1.0),
            ("metrics", WRITES, 0.0), ("metrics", "fsync", 0.0),
            ("begin", WRITES, 0.5), ("begin", WRITES, 1.0),
        )
    ]  # fmt: skip
    tries += [functools.partial(full_while_training, x) for x in (0.0, 0.1, 0.3, 0.5, 0.9)]
    tries += [full_while_logging]
    tries += [
        functools.partial(full_while_writing, arguments, outputs, share)
        for arguments, outputs, share in (
            (("export", "--saved-model", "--no-verify"), "saved_model", 0.5),
            (("export", "--tflite"), "exports/tflite", 0.8),
            (("eval",), "", 0.0),
        )
    ]
    tries += [functools.partial(full_scratch, share) for share in (0.3, 0.6)]
    yield from spread(tries, count)


def read_only(folder: Path, _: random.Random) -> None:
    """Trains, and evaluates, on a disk that is mounted read-only."""
    with small_disk(folder) as disk:
        disk.shell(f"mount -o remount,ro {disk.path}")
        done = train_on(disk)
        check_error(done, 6, os.strerror(errno.EROFS), str(disk.path))
        disk.shell(f"mount -o remount,rw {disk.path}")
        check_can_be_finished(disk)
        disk.shell(f"mount -o remount,ro {disk.path}")
        done = disk.cnnbench("eval", disk.path / "run")
        check_error(done, 6, os.strerror(errno.EROFS), str(disk.path))


@row(7, "device errors, no permission, read-only: exit 6 by name, old state whole", full=15)
def refusals(count: int) -> Iterator[Try]:
    """Single calls that the system refuses; root is not bound by permission bits."""
    opens = "openat"
    tries: list[Try] = [
        functools.partial(refused, action, _pick(action, names, share), error)
        for action, names, error, share in (
            ("save", WRITES, "EIO", 0.3), ("save", "fsync", "EIO", 0.0),
            ("save", RENAMES, "EIO", 0.25), ("save", RENAMES, "EIO", 0.5),
            ("save", RENAMES, "EIO", 1.0), ("save", FOLDERS, "EACCES", 0.34),
            ("save", opens, "EROFS", 0.0), ("metrics", WRITES, "EIO", 0.0),
            ("metrics", RENAMES, "EROFS", 0.0), ("begin", FOLDERS, "EACCES", 0.0),
            ("begin", RENAMES, "EROFS", 0.0), ("lock", opens, "EACCES", 0.0),
            ("load", "read", "EIO", 0.5), ("open", "read", "EIO", 0.5),
        )
    ]  # fmt: skip
    yield from spread([*tries, read_only], count)
