"""Callbacks that the training loop reports to."""

from __future__ import annotations

from typing import Any

from cnnbench.runs.run import Run


class Callbacks:
    """Receives the progress of a training; each method does nothing unless it is overridden."""

    def started(self, run: Run, steps: int, first_step: int, notes: list[str]) -> None:
        """Called before the first step.

        Args:
            run: where the training is kept.
            steps: of the whole training.
            first_step: counted from 0; above 0 on resume.
            notes: lines for people.
        """

    def noted(self, text: str) -> None:
        """Called with a line for people."""

    def progressed(self, step: int, loss: float, score: float, images_per_s: float) -> None:
        """Called after some steps.

        Args:
            step: how many were done.
            loss: mean since the epoch began.
            score: of the task, likewise.
            images_per_s: since the epoch began.
        """

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Called after an epoch with its row of metrics.jsonl."""
