"""The progress of training on a terminal: a bar while an epoch runs, a line for each that ended."""

from __future__ import annotations

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
from cnnbench.tasks.task import Score


@contextmanager
def shown() -> Iterator[Terminal]:
    """Yields a training listener that writes to stderr; the bar only where a person looks."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        yield Terminal(console, bar)


@contextmanager
def downloading(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function to be told of the bytes so far and of all, shown on stderr."""
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


class Terminal:
    """A training listener that shows what it is told."""

    def __init__(self, console: Console, bar: Progress):
        self._console, self._bar = console, bar
        self._task: TaskID | None = None
        self._score = Score("", "")

    def started(self, run: Run, steps: int, first_step: int, notes: list[str]) -> None:
        """Says where the run is and begins the bar."""
        self._score = run.recipe.task.score
        self._console.print(f"run: {_safe(str(run.path))}, {steps} steps", highlight=False)
        for note in notes:
            self.noted(note)
        if first_step:
            self._console.print(f"resumed at step {first_step}", highlight=False)
        self._task = self._bar.add_task("", total=steps, completed=first_step, state="compiling")

    def noted(self, text: str) -> None:
        """Prints it."""
        self._console.print(_safe(text), highlight=False, soft_wrap=True)

    def progressed(self, step: int, loss: float, score: float, images_per_s: float) -> None:
        """Moves the bar."""
        assert self._task is not None
        state = f"loss {loss:.3f}  {self._score.title} {score:.3f}  {images_per_s:.0f} img/s"
        self._bar.update(self._task, completed=step, state=state)

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Prints the epoch's line."""
        line = f"epoch {row['epoch']:3d}  step {row['step']:6d}  lr {row['lr']:.4g}"
        for split in ("train", "validation"):
            if split in row:
                loss, score = row[split]["loss"], row[split][self._score.key]
                line += f"  {split}: loss {loss:.4f} {self._score.title} {score:.4f}"
        line += f"  {row['throughput_images_per_s']:.0f} img/s  {row['seconds']:.0f} s"
        self._console.print(line, highlight=False, soft_wrap=True)
