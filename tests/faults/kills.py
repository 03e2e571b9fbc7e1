"""Processes that are killed or told to end: training goes on exactly, no file is ever partial."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cnnbench import open_run
from cnnbench.runs import checkpoint
from cnnbench.system import signals

from .harness import (
    SHORT,
    STEPS_PER_CALL,
    STEPS_PER_EPOCH,
    Command,
    Training,
    Try,
    files_of_a_run,
    finish,
    must_equal,
    outcome,
    read_all,
    row,
    uninterrupted,
    unpack,
)

# A signal must come before the end of the training, which has 200 steps.
LAST_SIGNAL = 180
# What saving writes below a run directory.
SAVED = ("checkpoints", "best", ".best", "metrics.jsonl", ".metrics.jsonl")
# Until a checkpoint is under its name, and that on the disk.
OPERATIONS_OF_A_SAVE = 14
# What eval and export write.
MADE = ("eval.json", ".eval.json", "exports", "saved_model", ".saved_model")
COMMANDS = (("eval",), ("export", "--tflite"), ("export", "--saved-model"))


@row(1, "SIGKILL at a random step: resumed bit-identical", full=30, short=1)
def killed_once(count: int) -> Iterator[Try]:
    yield from itertools.repeat(_killed_once, count)


def _killed_once(folder: Path, random: random.Random) -> None:
    training = Training(folder)
    training.kill(random.randint(1, LAST_SIGNAL), random)
    training.finish()
    must_equal(outcome(training.run), uninterrupted())


@row(
    2, "SIGKILL inside a save: the save before it is used, the end bit-identical", full=100, short=1
)
def killed_in_a_save(count: int) -> Iterator[Try]:
    yield from (partial(_killed_in_a_save, cut=number % 3 == 0) for number in range(count))


def _killed_in_a_save(folder: Path, random: random.Random, *, cut: bool) -> None:
    """Kills before any operation on a file, or, cut, once a file has so many bytes."""
    done = operations_of_training()
    if cut:  # of arrays or metrics, which are written after these
        at = random.choice([each for each in done if each.kind == "os.mkdir"])
        room = int(10 ** random.uniform(0, 4.5))
    else:
        at, room = random.choice(done), None
    training = Training(folder, SHORT)
    command = training.start(harms=[partial(die_at, training.run, SAVED, at.number, room)])
    code = command.wait()
    assert code == (-signal.SIGXFSZ if cut else -signal.SIGKILL), f"{code}: {command.output}"
    killed_at = training.step
    saves = [0, *(int(Path(each.path).name) for each in done if _ends_a_save(each))]
    before = max([0] + [int(Path(e.path).name) for e in done[: at.number] if _ends_a_save(e)])
    longest = max(after - step for step, after in itertools.pairwise(saves))
    output = training.finish()
    resumed_at = int((re.findall(r"resumed at step (\d+)", output) or [0])[0])
    what = f"killed at {killed_at} by {at}, resumed at {resumed_at}"
    assert resumed_at >= before, f"{what}: step {before} was saved"
    # What was done since the save that was under way began is lost with it.
    assert killed_at - resumed_at <= 2 * longest, f"{what}: a save is made every {longest} steps"
    must_equal(outcome(training.run), uninterrupted(SHORT))


@row(4, "Ten SIGKILLs in one run: bit-identical, each epoch once", full=3)
def killed_ten_times(count: int) -> Iterator[Try]:
    yield from itertools.repeat(_killed_ten_times, count)


def _killed_ten_times(folder: Path, random: random.Random) -> None:
    training = Training(folder)
    for number, step in enumerate(sorted(random.sample(range(1, LAST_SIGNAL), 10))):
        if number % 2:
            command = training.start(harms=[partial(die_after_a_row, training.run)])
            code = command.wait()
            assert code == -signal.SIGKILL, f"exit code {code}: {command.output}"
        else:
            training.kill(step, random)
        epochs = [each["epoch"] for each in open_run(training.run).metrics()]
        assert epochs == list(range(1, len(epochs) + 1)), f"metrics.jsonl has epochs {epochs}"
    training.finish()
    assert [each["epoch"] for each in open_run(training.run).metrics()] == list(range(1, 11))
    must_equal(outcome(training.run), uninterrupted())


def die_after_a_row(run: Path) -> None:
    """Harm: has the process killed between an epoch's row of metrics and its checkpoint."""
    written = 0

    def act(_: int, kind: str, path: str) -> None:
        nonlocal written
        if written == 2:  # the first time, it was written for the start
            os.kill(os.getpid(), signal.SIGKILL)
        written += kind == "os.rename" and Path(path).name == "metrics.jsonl"

    watch(run, SAVED, act)


@row(5, "SIGTERM: saved at that step, exit code 75; a second one corrupts nothing", full=20)
def terminated(count: int) -> Iterator[Try]:
    for number in range(count):
        yield partial(_terminated, operation=number % OPERATIONS_OF_A_SAVE)


def _terminated(folder: Path, random: random.Random, *, operation: int) -> None:
    """Terminates twice: with one signal, and with a second at an operation of the save."""
    # Without the saves in between, one of which may be due at the same step.
    training = Training(folder, f"train.checkpoint_every={10 * LAST_SIGNAL}")
    first, second = sorted(random.sample(range(1, LAST_SIGNAL), 2))
    command = training.reach(first)
    with command.stopped():
        before = training.step
        command.send(signal.SIGTERM)
    code, output = command.wait(), command.output
    assert code == 75, f"exit code {code}: {output}"
    told = re.search(r"interrupted and saved at step (\d+) of 200", output.replace("\n", " "))
    assert told, output
    step = int(told[1])
    saved = checkpoint.last(training.run / "checkpoints").state["step"]
    assert training.step == step == saved, f"told {training.step}, said {step}, saved {saved}"
    # The call that ran, if one did, is finished, and no other begun.
    epoch_end = before - before % STEPS_PER_EPOCH + STEPS_PER_EPOCH
    after = min(before + STEPS_PER_CALL, epoch_end)
    assert step in (before, after), f"a signal after step {before} was heeded at step {step}"
    again = partial(terminate_again, training.run, operation)
    command = training.reach(max(second, step + 1), harms=[again])
    command.send(signal.SIGTERM)
    code = command.wait()
    # 75 where the first came when the checkpoint of an epoch was all but saved.
    assert code in (75, 130), f"exit code {code}: {command.output}"
    output = training.finish()
    assert "damaged" not in output, output
    must_equal(outcome(training.run), uninterrupted())


def terminate_again(run: Path, number: int) -> None:
    """Harm: has a SIGTERM followed by another, before an operation of that number of its save."""
    came, left = [], number

    @contextlib.contextmanager
    def caught() -> Iterator[Callable[[], bool]]:
        with real() as interrupted:
            came.append(interrupted)
            yield interrupted

    def act(*_: object) -> None:
        nonlocal left
        if came and came[0]():
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            left -= 1

    real, signals.caught = signals.caught, caught
    watch(run, SAVED, act)


@row(19, "Export and eval killed: never a partial artifact or eval.json", full=20)
def killed_while_writing(count: int) -> Iterator[Try]:
    for number in range(count):
        yield partial(_killed_while_writing, command=COMMANDS[number % 3], replaces=number % 2 == 0)


def _killed_while_writing(
    folder: Path, random: random.Random, *, command: Sequence[str], replaces: bool
) -> None:
    """Kills a command at a random operation on a file, or at a random time."""
    whole = made_by(command)
    content = whole.files if replaces else files_of_a_run(SHORT)
    path = unpack(content, folder / "run")
    full_command = (command[0], path, *command[1:])
    if random.random() < 0.7:
        at = random.choice(whole.operations).number
        room = random.choice((None, 0, 1000))
        process = Command(folder, *full_command, harms=[partial(die_at, path, MADE, at, room)])
    else:
        process = Command(folder, *full_command)
        time.sleep(random.uniform(0, whole.seconds))
        process.send(signal.SIGKILL)
    process.wait()
    _must_be_whole(path, whole.files, may_lack=True)
    code, output = finish(folder, *full_command)
    assert code == 0, output
    _must_be_whole(path, whole.files, may_lack=False)


def _must_be_whole(path: Path, wanted: dict[str, bytes], *, may_lack: bool) -> None:
    """Compares what lies under a final name with what a command that nothing befell wrote."""
    for name in ("eval.json", "exports/tflite", "saved_model"):
        there = {key: data for key, data in read_all(path).items() if _is_of(key, name)}
        should = {key: data for key, data in wanted.items() if _is_of(key, name)}
        if may_lack and not there and not (path / name).exists():
            continue
        assert there.keys() == should.keys(), f"{name} has {sorted(there)}"
        for key, data in there.items():
            if key.endswith(".json"):
                assert json.loads(data).keys() == json.loads(should[key]).keys(), key
            elif key.endswith("fingerprint.pb"):  # hashes, as integers of varying length
                assert data, f"{key} is empty"
            else:
                assert len(data) == len(should[key]), f"{key}: {len(data)} bytes"


def _is_of(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}/")


@dataclass(frozen=True)
class Operation:
    """Something that a process did to a file: its number in the order of all, its kind and path."""

    number: int
    kind: str
    path: str


@dataclass(frozen=True)
class Made:
    """What a command does where nothing befalls it."""

    files: dict[str, bytes]
    operations: list[Operation]
    seconds: float


@functools.cache
def operations_of_training() -> list[Operation]:
    """Returns what a training does to the files that it saves, in order."""
    with tempfile.TemporaryDirectory() as place:
        training, log = Training(Path(place), SHORT), Path(place) / "operations"
        command = training.start(harms=[partial(note_operations, training.run, SAVED, log)])
        assert command.wait() == 0, command.output
        return _read_operations(log)


@functools.cache
def made_by(command: Sequence[str]) -> Made:
    """Returns what a command makes of a finished run."""
    with tempfile.TemporaryDirectory() as place:
        path, log = unpack(files_of_a_run(SHORT), Path(place) / "run"), Path(place) / "operations"
        start = time.monotonic()
        code, output = finish(
            Path(place),
            command[0],
            path,
            *command[1:],
            harms=[partial(note_operations, path, MADE, log)],
        )
        assert code == 0, output
        return Made(read_all(path), _read_operations(log), time.monotonic() - start)


def _read_operations(log: Path) -> list[Operation]:
    lines = (line.split(" ", 2) for line in log.read_text().splitlines())
    return [Operation(int(number), kind, path) for number, kind, path in lines]


def _ends_a_save(done: Operation) -> bool:
    path = Path(done.path)
    return done.kind == "os.rename" and path.parent.name == "checkpoints" and path.name.isdecimal()


def note_operations(run: Path, names: Sequence[str], log: Path) -> None:
    """Harm, though harmless: writes a line for each operation on certain files of a run."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watch(run, names, lambda *about: os.write(handle, (" ".join(map(str, about)) + "\n").encode()))


def die_at(run: Path, names: Sequence[str], number: int, room: int | None) -> None:
    """Harm: has the process killed before its operation of that number on certain files of a run.

    With `room`, the kernel kills it later, as soon as it has written so many bytes to a file.
    """

    def act(found: int, *_: object) -> None:
        if found == number and room is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif found == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch(run, names, act)


def watch(run: Path, names: Sequence[str], act: Callable[[int, str, str], None]) -> None:
    """Has a function called before whatever this process does to certain files of a run.

    Args:
        run: the run directory.
        names: what the files' paths in it begin with.
        act: told the operation's number, its kind and the path, of a renaming the new one.
    """
    prefixes, numbers = tuple(f"{run}/{name}" for name in names), itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS:
            path = arguments[1 if event == "os.rename" else 0]
            if not isinstance(path, int):
                path = os.fsdecode(path)
                if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
                    path = f"{_path_of(arguments[1])}/{path}"
                if path.startswith(prefixes):
                    act(next(numbers), event, path)

    def fsync(handle: int) -> None:
        hook("os.fsync", (_path_of(handle),))
        real_fsync(handle)

    real_fsync, os.fsync = os.fsync, fsync
    sys.addaudithook(hook)


_OPERATIONS = ("open", "os.chmod", "os.fsync", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def _path_of(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())
