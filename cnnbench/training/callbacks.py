"""Who is told how training goes."""

from __future__ import annotations

from typing import Any, Protocol

from cnnbench.runs.run import Run


class Listener(Protocol):
    """What training calls."""

    def started(self, run: Run, steps: int, first_step: int, notes: list[str]) -> None:
        """Training is about to begin at a step."""

    def noted(self, text: str) -> None:
        """Something happened that a person should know."""

    def progressed(self, step: int, loss: float, score: float, images_per_s: float) -> None:
        """Some steps were done; loss and score are means since the epoch began."""

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """An epoch was done; `row` is its line in metrics.jsonl."""


class Silence:
    """A listener that says nothing."""

    def started(self, run: Run, steps: int, first_step: int, notes: list[str]) -> None:
        """Says nothing."""

    def noted(self, text: str) -> None:
        """Says nothing."""

    def progressed(self, step: int, loss: float, score: float, images_per_s: float) -> None:
        """Says nothing."""

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """Says nothing."""
