"""Learning-rate schedules: functions from a step to a factor of the recipe's learning rate.

A builder takes `total`, the steps that it has after warm-up, and `per_epoch`, steps in an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbench.registry.kinds import SCHEDULES, ScheduleSpec
from cnnbench.registry.limits import Factor, Fraction, NonNegative, Positive, PositiveInt, Share

Curve = Callable[[int], float]


@SCHEDULES.register("constant")
def constant(total: int, per_epoch: int) -> Curve:
    """The learning rate as it is."""
    return lambda step: 1.0


@SCHEDULES.register("step")
def step(
    total: int,
    per_epoch: int,
    *,
    epochs: Annotated[list[Positive], Field(min_length=1)],
    factor: Factor = 0.1,
) -> Curve:
    """Times `factor` at each of these epochs, counted after warm-up."""
    return lambda step: factor ** sum(step >= round(epoch * per_epoch) for epoch in epochs)


@SCHEDULES.register("exponential")
def exponential(
    total: int,
    per_epoch: int,
    *,
    factor: Factor = 0.97,
    epochs: Positive = 1.0,
    staircase: bool = False,
) -> Curve:
    """Times `factor` every so many epochs, smoothly or in stairs."""
    steps = epochs * per_epoch

    def curve(step: int) -> float:
        return factor ** (step // steps if staircase else step / steps)

    return curve


@SCHEDULES.register("cosine")
def cosine(total: int, per_epoch: int, *, final: Fraction = 0.0) -> Curve:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, equation 5)."""
    return lambda step: final + (1 - final) * _half_cosine(step / max(1, total))


@SCHEDULES.register("cosine_restarts")
def cosine_restarts(
    total: int,
    per_epoch: int,
    *,
    epochs: Positive = 10.0,
    multiply: Annotated[float, Field(ge=1)] = 2.0,
    final: Fraction = 0.0,
) -> Curve:
    """Cosines that start again, each `multiply` times as long (SGDR, Loshchilov & Hutter 2017)."""
    first = max(1.0, epochs * per_epoch)

    def curve(step: int) -> float:
        period, position = first, step % first if multiply == 1 else float(step)
        while position >= period:
            position -= period
            period *= multiply
        return final + (1 - final) * _half_cosine(position / period)

    return curve


@SCHEDULES.register("one_cycle")
def one_cycle(
    total: int,
    per_epoch: int,
    *,
    rise: Factor = 0.3,
    start: Share = 0.04,
    final: Fraction = 4e-6,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> Curve:
    """Up from `start` to 1 over the share `rise` of training, then down to `final`.

    Smith & Topin 2018; the defaults are PyTorch's. Deviation: the momentum stays as it is.
    """
    top = rise * total
    shape = _half_cosine if anneal == "cosine" else lambda x: 1 - x

    def curve(step: int) -> float:
        if step < top:
            return 1 + (start - 1) * shape(step / top)
        return final + (1 - final) * shape(min(1.0, (step - top) / max(1, total - 1 - top)))

    return curve


@dataclass
class Plateau:
    """A curve that falls when the validation loss has stopped falling."""

    factor: float
    patience: int
    min_delta: float
    min_factor: float
    scale: float = 1.0
    best: float | None = None
    epochs_without: int = 0

    def __call__(self, step: int) -> float:
        """Returns the factor, which no step changes."""
        return self.scale

    def observe(self, loss: float) -> None:
        """Takes the validation loss of an epoch that has ended."""
        if self.best is None or loss < self.best - self.min_delta:
            self.best, self.epochs_without = loss, 0
            return
        self.epochs_without += 1
        if self.epochs_without >= self.patience:
            self.scale = max(self.scale * self.factor, self.min_factor)
            self.epochs_without = 0


@SCHEDULES.register("plateau", needs_validation=True)
def plateau(
    total: int,
    per_epoch: int,
    *,
    factor: Factor = 0.1,
    patience: Annotated[
        PositiveInt, Field(description="epochs, counted from the first that ends after the warm-up")
    ] = 5,
    min_delta: NonNegative = 1e-4,
    min_factor: Fraction = 0.0,
) -> Plateau:
    """Times `factor` when the validation loss has not fallen for `patience` epochs after warm-up.

    Epochs that end within the warm-up do not count, and their losses are not compared with later
    ones: a loss measured at a small learning rate is not one to reach at the full rate.
    """
    return Plateau(factor, patience, min_delta, min_factor)


class LearningRate:
    """The learning rate at each step: a linear warm-up, then the schedule's curve.

    Args:
        spec: a recipe's `schedule`.
        lr: the rate that the curve is a factor of.
        total: all steps of the training.
        per_epoch: steps in an epoch.
    """

    def __init__(self, spec: ScheduleSpec, lr: float, total: int, per_epoch: int):
        self._lr = lr
        self._warmup = round(spec.warmup_epochs * per_epoch)
        self._curve: Any = SCHEDULES.build(spec, total - self._warmup, per_epoch)

    def at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        if step < self._warmup:
            return self._lr * (step + 1) / self._warmup
        return self._lr * self._curve(step - self._warmup)

    def observe(self, validation_loss: float, step: int) -> None:
        """Takes the validation loss of an epoch, which only `plateau` uses, after the warm-up.

        Args:
            validation_loss: mean over the validation split.
            step: training steps done at the end of the epoch.
        """
        if isinstance(self._curve, Plateau) and step > self._warmup:
            self._curve.observe(validation_loss)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must keep."""
        return asdict(self._curve) if isinstance(self._curve, Plateau) else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""
        for key, value in state.items():
            setattr(self._curve, key, value)


def _half_cosine(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2
