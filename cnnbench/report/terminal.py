"""Training progress: a line per epoch and, during an epoch, a bar or a line per minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from cnnbench.errors import printable
from cnnbench.runs.run import Run
from cnnbench.system.output import discard
from cnnbench.tasks.task import Score
from cnnbench.training.callbacks import Callbacks

# Without a bar, the longest time between lines, unless a single call takes longer.
SILENCE_S = 60.0


class _Console(Console):
    """A console that training outlives, whether its reader has gone or its disk is full."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as Rich does, and no more after an error of the system."""
        try:
            super().print(*objects, **options)
        except OSError:  # BrokenPipeError has its own way
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Prints nothing more; Rich's own ends the process."""
        self.quiet = True
        discard(sys.stderr)


@contextmanager
def shown(
    console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Terminal]:
    """Yields callbacks that show a bar on a terminal, and elsewhere print a line every minute.

    Args:
        console: console to write to; None: stderr.
        clock: returns seconds; must be monotonic.
    """
    console = console or _Console(stderr=True, emoji=False)
    with Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield Terminal(console, bar, clock)


@contextmanager
def downloading(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function that shows progress on stderr, given the bytes so far and in total."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task: TaskID | None = None

        def report(done: int, total: int | None) -> None:
            nonlocal task
            task = bar.add_task(what, total=total) if task is None else task
            bar.update(task, completed=done, total=total)

        yield report


def _safe(text: str) -> str:
    return escape(printable(text))


class Terminal(Callbacks):
    """Callbacks that show training progress.

    Args:
        console: console to write to.
        bar: progress bar for steps; disabled unless the console is a terminal.
        clock: returns seconds; must be monotonic.
    """

    def __init__(self, console: Console, bar: Progress, clock: Callable[[], float]):
        self._console, self._bar, self._clock = console, bar, clock
        self._task: TaskID | None = None
        self._score = Score("", "")
        self._steps = 0
        self._printed = self._progressed = clock()

    def started(self, run: Run, steps: int, first_step: int, notes: list[str]) -> None:
        """Prints the run's path and starts the bar."""
        self._score, self._steps = run.recipe.task.score, steps
        self._print(f"run: {_safe(str(run.path))}, {steps} steps")
        for note in notes:
            self.noted(note)
        if first_step:
            self._print(f"resumed at step {first_step}")
        self._task = self._bar.add_task("", total=steps, completed=first_step, state="compiling")

    def noted(self, text: str) -> None:
        """Prints a note."""
        self._print(_safe(text))

    def progressed(self, step: int, loss: float, score: float, images_per_s: float) -> None:
        """Updates the bar; without a terminal, prints a line about once a minute."""
        assert self._task is not None
        state = f"loss {loss:.3f}  {self._score.title} {score:.3f}  {images_per_s:.0f} img/s"
        self._bar.update(self._task, completed=step, state=state)
        now = self._clock()
        # Print now if the minute is likely to be over at the next call, which takes about as long.
        expected, self._progressed = now + (now - self._progressed), now
        if not self._console.is_terminal and expected >= self._printed + SILENCE_S:
            self._print(f"step {step}/{self._steps}  {state}")

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Prints the epoch's line."""
        line = f"epoch {row['epoch']:3d}  step {row['step']:6d}  lr {row['lr']:.4g}"
        for split in ("train", "validation"):
            if split in row:
                loss, score = row[split]["loss"], row[split][self._score.key]
                line += f"  {split}: loss {loss:.4f} {self._score.title} {score:.4f}"
        line += f"  {row['throughput_images_per_s']:.0f} img/s  {row['seconds']:.0f} s"
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
        self._printed = self._progressed = self._clock()
