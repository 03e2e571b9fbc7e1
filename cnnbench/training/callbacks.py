"""Callbacks that the training loop reports to."""

from __future__ import annotations

from typing import Any

from cnnbench.runs.run import Run


class Callbacks:
    """Base class of training callbacks; every method does nothing by default."""

    def started(self, run: Run, steps: int, first_step: int, notes: list[str]) -> None:
        """Called before the first step.

        Args:
            run: the run being trained.
            steps: total number of training steps.
            first_step: the first step to run, counted from 0; above 0 when resuming.
            notes: messages for the user.
        """

    def noted(self, text: str) -> None:
        """Called with a message for the user."""

    def progressed(self, step: int, loss: float, score: float, images_per_s: float) -> None:
        """Called after each call into TensorFlow, which runs one or more steps.

        Args:
            step: number of steps done.
            loss: mean training loss since the start of the epoch.
            score: mean score of the task since the start of the epoch.
            images_per_s: throughput since the start of the epoch.
        """

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Called after each epoch with its row of metrics.jsonl."""
