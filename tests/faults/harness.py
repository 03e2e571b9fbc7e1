"""Rows of the scoreboard: each a fault that is made many times, and what has to hold each time.

The processes are real ones: cnnbench's own command line, forked from a process that has imported
TensorFlow and done nothing with it, which saves seconds a try.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench import open_run
from cnnbench.runs import checkpoint
from cnnbench.system import environment

# One try: given a folder of its own and its random numbers, it raises if anything is wrong.
Try = Callable[[Path, random.Random], None]
# Something done to a process before its command begins; a function at the top of a module.
Harm = Callable[[], None]

# 200 steps in 10 epochs, with all that draws or keeps something: dropout, batch normalisation
# (see `_small_network`), augmentation, an optimizer with moments, a schedule with warm-up.
RECIPE = """
name: faults
seed: 3
model: {name: lenet5, activation: relu, dropout: 0.2}
data: {name: synthetic, batch_size: 8, examples: 176, shape: [16, 16, 3], validation: 16}
augment: [{name: random_crop, padding: 2}, {name: random_flip}]
regularization: {l2: 1.0e-4}
optimizer: {name: adam, lr: 2.0e-3}
schedule: {name: cosine, warmup_epochs: 1}
train: {epochs: 10, steps_per_call: 3, checkpoint_every: 7}
"""
STEPS_PER_EPOCH, STEPS_PER_CALL = 20, 3
SHORT = "train.epochs=2"  # 40 steps
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Row:
    """A kind of fault.

    number: its place in the scoreboard.
    name: what is done and what must hold, in a line.
    tries: yields the tries, `count` of them or as many as there are kinds; each raises where it
        fails.
    full, short: how many tries `make faults` and the default tests make.
    """

    number: int
    name: str
    tries: Callable[[int], Iterator[Try]]
    full: int
    short: int


ROWS: dict[int, Row] = {}


def row(number: int, name: str, *, full: int, short: int = 0):
    """Registers a function of a count, which yields that many tries, as a row."""

    def register(tries: Callable[[int], Iterator[Try]]) -> Callable[[int], Iterator[Try]]:
        ROWS[number] = Row(number, name, tries, full, short)
        return tries

    return register


@dataclass(frozen=True)
class Score:
    """How many tries of a row held, and what went wrong in the others."""

    passed: int
    total: int
    failures: tuple[str, ...]


def score(found: Row, count: int, *, seed: int = 0) -> Score:
    """Makes the tries of a row, each in a new folder; those that fail leave theirs behind."""
    failures: list[str] = []
    total = 0
    for number, attempt in enumerate(found.tries(count)):
        total += 1
        folder = Path(tempfile.mkdtemp(prefix=f"cnnbench-fault-{found.number}-"))
        try:
            attempt(folder, random.Random(f"{seed} {found.number} {number}"))
        except Exception as error:  # counted and told, whatever it is
            failures.append(f"try {number}: {type(error).__name__}: {error} (see {folder})")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return Score(total - len(failures), total, tuple(failures))


class Command:
    """A command of cnnbench that runs in a process of its own.

    Args:
        folder: where its output and its temporary files go.
        arguments: of the command line.
        harms: what is done to the process before.
    """

    def __init__(self, folder: Path, *arguments: object, harms: Sequence[Harm] = ()):
        self._output = folder / f"output-{time.monotonic_ns()}.txt"
        self._process = forks().Process(
            target=_main, args=(folder, list(map(str, arguments)), self._output, harms), daemon=True
        )
        self._process.start()

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds; the process must not end before."""
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self._process.is_alive(), f"ended too soon: {self.output}"
            assert time.monotonic() < end, f"no end in {TIMEOUT_S} s: {self.output}"
            time.sleep(0.001)

    def send(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops the process for as long as the context lasts."""
        self.send(signal.SIGSTOP)
        state = Path(f"/proc/{self._process.pid}/stat")
        self.until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        yield
        self.send(signal.SIGCONT)

    def wait(self) -> int:
        """Waits for the end; returns the exit code, or the negative number of a signal."""
        self._process.join(TIMEOUT_S)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"no end in {TIMEOUT_S} s: {self.output}")
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What the process wrote so far, stdout and stderr together."""
        return self._output.read_text() if self._output.exists() else ""


def finish(folder: Path, *arguments: object, harms: Sequence[Harm] = ()) -> tuple[int, str]:
    """Runs a command to its end; returns the exit code and the output."""
    command = Command(folder, *arguments, harms=harms)
    return command.wait(), command.output


@functools.cache
def forks() -> Any:
    """Returns the multiprocessing context whose processes have TensorFlow imported already."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tensorflow", "keras", "cnnbench.training.stages", "cnnbench.exports.export"]
    )
    return context


def _main(folder: Path, arguments: list[str], output: Path, harms: Sequence[Harm]) -> None:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = str(folder)
    _small_network()
    environment.code_sha256 = lambda: "0" * 64  # the code may be worked on while faults are made
    if arguments[0] == "train":
        from cnnbench.exports import export

        export.export = lambda *_, **__: []  # the SavedModel at the end has a row of its own
    for harm in harms:
        harm()
    from cnnbench.cli import main

    main(arguments)


def _small_network() -> None:
    """Puts a batch normalisation before each activation of LeNet, for want of as small a ResNet."""
    from cnnbench.models import lenet
    from cnnbench.models.layers import blocks

    plain = lenet.activate
    lenet.activate = lambda x, kind, name: plain(blocks.norm(x, f"{name}_norm"), kind, name)


def report_steps(file: Path) -> None:
    """Harm: has training write its step into a file after each call."""
    from cnnbench.report.terminal import Terminal

    told, handle = Terminal.progressed, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def progressed(self: Terminal, step: int, *rest: float) -> None:
        os.pwrite(handle, b"%6d" % step, 0)
        told(self, step, *rest)

    Terminal.progressed = progressed


class Training:
    """A run in a try's folder, trained by one process after the other.

    Args:
        folder: of the try.
        settings: that its recipe has besides RECIPE.
        recipe: in place of RECIPE.
    """

    def __init__(self, folder: Path, *settings: str, recipe: str = RECIPE):
        self.folder, self.run, self._settings = folder, folder / "run", settings
        self.recipe, self._steps = folder / "recipe.yaml", folder / "steps"
        self.recipe.write_text(recipe)

    @property
    def step(self) -> int:
        """The last step that the newest process told."""
        text = self._steps.read_text() if self._steps.exists() else ""
        return int(text or 0)

    def start(self, *options: str, harms: Sequence[Harm] = ()) -> Command:
        """Starts a process that begins the run, or resumes it where there is one."""
        self._steps.unlink(missing_ok=True)
        how: list[object] = ["train", "--run-dir", self.run, *options]
        if (self.run / "recipe.yaml").is_file():
            how.append("--resume")
        else:
            how.append(self.recipe)
            how += itertools.chain.from_iterable(("--set", each) for each in self._settings)
        return Command(
            self.folder, *how, harms=(*harms, functools.partial(report_steps, self._steps))
        )

    def reach(self, step: int, *options: str, harms: Sequence[Harm] = ()) -> Command:
        """Starts a process and waits until it has told a step."""
        command = self.start(*options, harms=harms)
        command.until(lambda: self.step >= step)
        return command

    def kill(self, step: int, random: random.Random) -> None:
        """Starts a process and kills it soon after a step."""
        command = self.reach(step)
        time.sleep(random.uniform(0, 0.02))
        command.send(signal.SIGKILL)
        code = command.wait()
        assert code == -signal.SIGKILL, f"ended with {code} before the kill: {command.output}"

    def interrupt(self, step: int) -> str:
        """Starts a process and has it save and stop after a step; returns its output."""
        command = self.reach(step)
        command.send(signal.SIGTERM)
        code = command.wait()
        assert code == 75, f"exit code {code}: {command.output}"
        return command.output

    def finish(self, *options: str) -> str:
        """Trains to the end; returns the output."""
        command = self.start(*options)
        code = command.wait()
        assert code == 0, f"exit code {code}: {command.output}"
        return command.output


def outcome(path: Path) -> dict[str, Any]:
    """Returns all that a finished training left behind, but for what a clock wrote."""
    run = open_run(path)
    last, best = checkpoint.last(run.checkpoints), checkpoint.load(run.best)
    return {
        **{f"arrays: {name}": as_bytes(array) for name, array in last.arrays.items()},
        **{f"best: {name}": as_bytes(array) for name, array in best.arrays.items()},
        "state": without_times(last.state),
        "state of best": without_times(best.state),
        "metrics": without_times(run.metrics()),
        "finished": json.loads((path / "finished.json").read_text()),
    }


def as_bytes(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Returns an array as something that is equal only if each bit is."""
    return str(array.dtype), array.shape, array.tobytes()


def without_times(value: Any) -> Any:
    """Leaves out what a clock wrote."""
    if isinstance(value, dict):
        times = ("seconds", "throughput_images_per_s")
        return {key: without_times(each) for key, each in value.items() if key not in times}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def must_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises an AssertionError that names the keys that differ."""
    different = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    assert not different, f"{len(different)} of {len(wanted)} differ: {sorted(different)[:5]}"


@functools.cache
def uninterrupted(*settings: str) -> dict[str, Any]:
    """Returns the outcome of a training that nothing befell."""
    with tempfile.TemporaryDirectory() as place:
        training = Training(Path(place), *settings)
        training.finish()
        return outcome(training.run)


@functools.cache
def files_of_a_run(*settings: str, interrupted_at: int | None = None) -> dict[str, bytes]:
    """Returns the files of a run that is finished, or was interrupted; see `unpack`."""
    with tempfile.TemporaryDirectory() as place:
        training = Training(Path(place), *settings)
        if interrupted_at is None:
            training.finish()
        else:
            training.interrupt(interrupted_at)
        return read_all(training.run)


def read_all(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder, by its relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def unpack(content: dict[str, bytes], folder: Path) -> Path:
    """Writes what `read_all` returned, and returns the folder."""
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def newest_step(path: Path) -> int:
    """Returns the highest step that a run has a checkpoint folder of; 0 without any."""
    names = [each.name for each in (path / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)
