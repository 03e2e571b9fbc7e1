"""Light processes, traced: a kill at any system call, or a call that ends with an error."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.runs import checkpoint
from cnnbench.runs.checkpoint import Checkpoint
from cnnbench.system import files

from .checks import ROOT, as_command, check, child, spread
from .harness import Try, row

OLD, NEW = 2, 3
RECIPE = """
name: disk
model: {name: lenet5}
data: {name: digits, batch_size: 40, image_size: 32, limit: 300, validation: 100}
optimizer: {name: momentum, lr: 0.01}
train: {epochs: 3, checkpoint_every: 2}
"""


def some(step: int) -> Checkpoint:
    """A checkpoint whose every value is its step."""
    arrays = {f"model/{i}/w": np.full((40, 100 + i), step, np.float32) for i in range(4)}
    return Checkpoint(arrays, {"step": step})


def make_run(folder: Path) -> None:
    """Writes two checkpoints, the best weights, and what else a run directory has."""
    from cnnbench.recipe.load import parse_recipe
    from cnnbench.runs import create as runs_create
    from cnnbench.runs import run as runs_run

    found = runs_run.Run(folder, parse_recipe(RECIPE))
    runs_create.commit(found, _facts(), {"onednn": True, "xla": False, "threads": None})
    for step in (OLD - 1, OLD):
        checkpoint.save(found.checkpoints / str(step), some(step))
    checkpoint.save(found.best, some(OLD))
    found.write_metrics([{"step": OLD}])


def _facts() -> Any:
    from cnnbench.runs.facts import DataFacts

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
    from cnnbench.runs import run as runs_run

    return lambda: runs_run.open_run(folder)


def _metrics(folder: Path) -> Callable[[], object]:
    from cnnbench.runs import run as runs_run

    found = runs_run.open_run(folder)
    return lambda: found.write_metrics([{"step": OLD}, {"step": NEW}])


def _lock(folder: Path) -> Callable[[], object]:
    from cnnbench.runs import run as runs_run

    found = runs_run.open_run(folder)

    def work() -> None:
        with found.locked():
            pass

    return work


def _begin(folder: Path) -> Callable[[], object]:
    from cnnbench.runs import create as runs_create
    from cnnbench.runs import run as runs_run

    recipe = runs_run.open_run(folder).recipe

    def work() -> None:
        with runs_create.new_run(folder / "another", recipe) as new:
            runs_create.commit(new, _facts(), {"onednn": True, "xla": False, "threads": None})

    return work


ACTIONS = {
    "save": _save,
    "load": _load,
    "open": _open,
    "metrics": _metrics,
    "lock": _lock,
    "begin": _begin,
}


def do_action() -> None:
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
    command = child(do_action, action, folder)
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
def calls_of(action: str) -> tuple[Call, ...]:
    """Returns the calls of an action on a run directory of its own."""
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

    tries: list[Try] = [functools.partial(attempt, call) for call in calls_of("save")]
    yield from spread(tries, len(tries) if count >= 200 else count)
