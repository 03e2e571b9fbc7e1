"""Disks that fail: a kill at any system call, no space, errors of the device, no permission."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import checkpoint, files
from cnnbench.checkpoint import Checkpoint

from .harness import Try, must_equal, outcome, read_all, row

ROOT = Path(__file__).parents[2]
OLD, NEW = 2, 3
CHILD = "from tests.faults import disks; disks.child()"
# What changes files or their names; each also by its newer name.
WRITES = "write|writev|pwrite64|pwritev|ftruncate|fallocate|copy_file_range|sendfile"
RENAMES, FOLDERS = "rename|renameat|renameat2", "mkdir|mkdirat"
RECIPE = """
name: disk
model: {name: lenet5}
data: {name: digits, batch_size: 40, image_size: 32, limit: 300, validation: 100}
optimizer: {name: momentum, lr: 0.01}
train: {epochs: 3, checkpoint_every: 2}
"""


def spread(tries: Sequence[Try], count: int) -> Iterator[Try]:
    """Yields so many of the tries, evenly spaced, or all if there are no more."""
    count = min(count, len(tries))
    yield from (tries[i * len(tries) // count] for i in range(count))


def as_command(work: Callable[[], object]) -> None:
    """Runs a function as a command of the tool, which ends the process as its own do."""
    from cnnbench import cli

    @cli.cli.command()
    def fault() -> None:
        work()

    cli.main(["fault"])


def check(holds: object, what: str) -> None:
    """Raises if something does not hold."""
    if not holds:
        raise AssertionError(what)


def check_error(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    """Raises unless a process ended with an exit code and one block of error with the words."""
    check(done.returncode == code, f"exit code {done.returncode}, not {code}: {done.stderr[-600:]}")
    check("Traceback" not in done.stderr, f"a traceback: {done.stderr[-600:]}")
    blocks = len(re.findall("^error: ", done.stderr, re.MULTILINE))
    check(blocks == 1, f"{blocks} errors: {done.stderr[-600:]}")
    message = done.stderr.partition("error: ")[2]
    for word in words:
        check(word in message, f"{word!r} is not in {message[:600]!r}")


# Light processes, traced


def some(step: int) -> Checkpoint:
    """A checkpoint whose every value is its step."""
    arrays = {f"model/{i}/w": np.full((40, 100 + i), step, np.float32) for i in range(4)}
    return Checkpoint(arrays, {"step": step})


def make_run(folder: Path) -> None:
    """Writes two checkpoints, the best weights, and what else a run directory has."""
    from cnnbench import run as runs
    from cnnbench.recipe import parse_recipe

    found = runs.Run(folder, parse_recipe(RECIPE))
    runs.begin(found, _facts(), {"onednn": True, "xla": False, "threads": None})
    for step in (OLD - 1, OLD):
        checkpoint.save(found.checkpoints / str(step), some(step))
    checkpoint.save(found.best, some(OLD))
    found.write_metrics([{"step": OLD}])


def _facts() -> Any:
    from cnnbench.run import DataFacts

    return DataFacts(
        name="digits",
        fingerprint=None,
        classes=["0", "1"],
        stored_channels=1,
        input_shape=[32, 32, 1],
        color="grey",
        mean=[0.5],
        std=[0.5],
    )


def _save(folder: Path) -> Callable[[], object]:
    new = some(NEW)

    def work() -> None:  # in the order of the end of an epoch
        checkpoint.save(folder / "best", new)
        checkpoint.save(folder / "checkpoints" / str(NEW), new)
        checkpoint.keep_last(folder / "checkpoints", 2)

    return work


def _load(folder: Path) -> Callable[[], object]:
    return lambda: checkpoint.newest(folder / "checkpoints")


def _open(folder: Path) -> Callable[[], object]:
    from cnnbench import run as runs

    return lambda: runs.open_run(folder)


def _metrics(folder: Path) -> Callable[[], object]:
    from cnnbench import run as runs

    found = runs.open_run(folder)
    return lambda: found.write_metrics([{"step": OLD}, {"step": NEW}])


def _lock(folder: Path) -> Callable[[], object]:
    from cnnbench import run as runs

    found = runs.open_run(folder)

    def work() -> None:
        with found.locked():
            pass

    return work


def _begin(folder: Path) -> Callable[[], object]:
    from cnnbench import run as runs

    recipe = runs.open_run(folder).recipe

    def work() -> None:
        with runs.new_run(folder / "another", recipe) as new:
            runs.begin(new, _facts(), {"onednn": True, "xla": False, "threads": None})

    return work


ACTIONS = {
    "save": _save,
    "load": _load,
    "open": _open,
    "metrics": _metrics,
    "lock": _lock,
    "begin": _begin,
}


def child() -> None:
    """Prepares an action, waits for a signal, so that a tracer can be attached, and does it."""
    action, folder = sys.argv[1:]
    work = ACTIONS[action](Path(folder))

    def marked() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.write(1, b"ready\n")
        signal.sigwait({signal.SIGUSR1})  # no call on a file, which would be counted
        work()
        os.write(1, b"done\n")

    as_command(marked)


def act(
    action: str, folder: Path, *, inject: str | None = None, log: Path | None = None
) -> subprocess.CompletedProcess:
    """Does an action in a process of its own, under strace if asked to.

    Args:
        action: one of ACTIONS.
        folder: a run directory.
        inject: what strace is to do, as its `-e inject=` takes it.
        log: where strace writes the calls on files.
    """
    command = [sys.executable, "-c", CHILD, action, str(folder)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment
    )
    assert process.stdout is not None
    with contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the process did not begin: {process.communicate()[1]}")
        if inject or log:
            stack.enter_context(_traced(process.pid, inject, log))
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextlib.contextmanager
def _traced(pid: int, inject: str | None, log: Path | None) -> Iterator[None]:
    if shutil.which("strace") is None:
        raise RuntimeError("strace is not on this machine, and without it nothing is injected here")
    names = inject.partition(":")[0] if inject else "%file,%desc"
    options = ["-e", f"trace={names}", *(["-e", f"inject={inject}"] if inject else [])]
    command = ["strace", "-f", *options, "-o", str(log or os.devnull), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        if "attached" not in (line := tracer.stderr.readline()):
            raise RuntimeError(f"strace cannot trace here: {line.strip()}")
        yield


@dataclass(frozen=True)
class Call:
    """A system call: its name, and how many of that name there were from the start, with it."""

    name: str
    count: int


def calls(action: str, folder: Path) -> list[Call]:
    """Returns the calls on files that an action makes, in their order."""
    log = folder.with_name(f"{folder.name}.strace")
    done = act(action, folder, log=log)
    check(done.returncode == 0, f"the action failed by itself: {done.stderr}")
    pid, _, _ = (text := log.read_text()).partition(" ")
    # Of processes that it starts, strace counts the calls apart.
    lines = [x for x in text.splitlines() if x.startswith(f"{pid} ") and " <... " not in x]
    lines = [line for line in lines if re.match(r"\d+ +\w+\(", line)]
    names = [line.split()[1].partition("(")[0] for line in lines]
    last = next(i for i, line in enumerate(lines) if 'write(1, "done' in line)
    found = [Call(name, names[: i + 1].count(name)) for i, name in enumerate(names)]
    # Those on memory change no file.
    return [call for call in found[:last] if call.name not in ("mmap", "munmap")]


@functools.cache
def _calls_of(action: str) -> tuple[Call, ...]:
    with tempfile.TemporaryDirectory(prefix="cnnbench-calls-") as scratch:
        folder = Path(scratch) / "run"
        make_run(folder)
        return tuple(calls(action, folder))


def saved_steps(folder: Path) -> tuple[int, int]:
    """Returns the steps of the best weights and of the newest checkpoint, all checked.

    Raises:
        AssertionError: an array or the newest checkpoint is not as it was saved.
    """
    files.recover(folder / "best")
    newest, problems = checkpoint.newest(folder / "checkpoints")
    check(not problems and newest is not None, f"damaged: {problems}")
    found = checkpoint.load(folder / "best"), newest
    for one in found:
        assert one is not None
        expected = some(one.state["step"]).arrays
        check(one.arrays.keys() == expected.keys(), "other arrays")
        check(all(np.array_equal(one.arrays[k], expected[k]) for k in expected), "other values")
    best, last = (one.state["step"] for one in found if one is not None)
    return best, last


def check_goes_on(folder: Path) -> None:
    """Raises unless the next save works and leaves nothing behind but what it should."""
    checkpoint.save(folder / "best", some(NEW + 1))
    checkpoint.save(folder / "checkpoints" / str(NEW + 1), some(NEW + 1))
    checkpoint.keep_last(folder / "checkpoints", 1)
    check(saved_steps(folder) == (NEW + 1, NEW + 1), "the next save is not there")
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    check(left == [str(NEW + 1)], f"left behind: {left}")
    left = [path.name for path in folder.glob(".best*")]
    check(not left, f"left behind: {left}")


@row(3, "killed at every system call of save and rotate: the old or the new is whole", full=200)
def kills(count: int) -> Iterator[Try]:
    """A kill before each call on files, and after the last."""

    def attempt(call: Call, folder: Path, _: random.Random) -> None:
        run = folder / "run"
        make_run(run)
        done = act("save", run, inject=f"{call.name}:signal=KILL:when={call.count}")
        check(done.returncode == -9, f"not killed at {call}: {done.returncode} {done.stderr}")
        best, last = saved_steps(run)
        check({best, last} <= {OLD, NEW} and last <= best, f"best {best}, newest {last} at {call}")
        check_goes_on(run)

    tries: list[Try] = [functools.partial(attempt, call) for call in _calls_of("save")]
    yield from spread(tries, len(tries) if count >= 200 else count)


# Small disks


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


def cnnbench(
    *arguments: object, before: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess:
    """Runs the command line as its own process."""
    command = [*before, sys.executable, "-m", "cnnbench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=300
    )


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
    with small_disk(folder) as disk:
        disk.leave(int(share * size_of(reference() / "run")))
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
    found = [call for call in _calls_of(action) if re.fullmatch(names, call.name)]
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
