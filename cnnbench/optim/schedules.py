"""Learning-rate schedules: curves that map a step to a multiplier of the base learning rate.

A builder takes `total`, the number of steps after warm-up, and `per_epoch`, the steps per epoch.
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
    """Keeps the learning rate constant."""
    return lambda step: 1.0


@SCHEDULES.register("step")
def step(
    total: int,
    per_epoch: int,
    *,
    epochs: Annotated[list[Positive], Field(min_length=1)],
    factor: Factor = 0.1,
) -> Curve:
    """Multiplies by `factor` at each of `epochs`, counted after warm-up."""
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
    """Multiplies by `factor` every `epochs` epochs, continuously or at once (`staircase`)."""
    steps = epochs * per_epoch

    def curve(step: int) -> float:
        return factor ** (step // steps if staircase else step / steps)

    return curve


@SCHEDULES.register("cosine")
def cosine(total: int, per_epoch: int, *, final: Fraction = 0.0) -> Curve:
    """Half-cosine decay from 1 to `final` (Loshchilov & Hutter 2017, equation 5)."""
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
    """SGDR: cosine cycles, each `multiply` times as long as the last (Loshchilov & Hutter 2017)."""
    first = max(1.0, epochs * per_epoch)

    def curve(step: int) -> float:
        period = first
        position = step % first if multiply == 1 else float(step)
        while position >= period:
            position -= period
            period *= multiply
        return final + (1 - final) * _half_cosine(position / period)

    return curve


@SCHEDULES.register("one_cycle", own_warmup=True)
def one_cycle(
    total: int,
    per_epoch: int,
    *,
    rise: Factor = 0.3,
    start: Share = 0.04,
    final: Fraction = 4e-6,
    anneal: Literal["cosine", "linear"] = "cosine",
) -> Curve:
    """Rises from `start` to 1 over the fraction `rise` of training, then falls to `final`.

    Smith & Topin 2018; the defaults and the steps of both ends are those of PyTorch's OneCycleLR.
    Deviation: the momentum stays constant.
    """
    top = max(0.0, rise * total - 1)
    shape = _half_cosine if anneal == "cosine" else lambda x: 1 - x

    def curve(step: int) -> float:
        if step < top:
            return 1 + (start - 1) * shape(step / top)
        return final + (1 - final) * shape(min(1.0, (step - top) / max(1, total - 1 - top)))

    return curve


@SCHEDULES.register("triangle", own_warmup=True)
def triangle(
    total: int, per_epoch: int, *, rise: Factor = 0.5, start: Fraction = 0.0, final: Fraction = 0.0
) -> Curve:
    """Rises linearly from `start` to 1 over the fraction `rise` of training, then to `final`.

    As in the code of Jordan 2024, `final` is that of the step after the last.
    """
    top = int(rise * total)

    def curve(step: int) -> float:
        if step < top:
            return start + (1 - start) * step / top
        return 1 + (final - 1) * (step - top) / max(1, total - top)

    return curve


@dataclass
class Plateau:
    """A curve that drops when the validation loss stops falling."""

    factor: float
    patience: int
    min_delta: float
    min_factor: float
    scale: float = 1.0
    best: float | None = None
    epochs_without: int = 0

    def __call__(self, step: int) -> float:
        """Returns the current factor, whatever the step."""
        return self.scale

    def observe(self, loss: float) -> None:
        """Updates the factor from the validation loss of an epoch."""
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
        PositiveInt, Field(description="epochs without improvement, counted after warm-up")
    ] = 5,
    min_delta: NonNegative = 1e-4,
    min_factor: Fraction = 0.0,
) -> Plateau:
    """Multiplies by `factor` when the validation loss has not fallen for `patience` epochs.

    Epochs that end during warm-up do not count, and their losses are not compared with later ones:
    a loss reached at a small learning rate may be out of reach at the full rate.
    """
    return Plateau(factor, patience, min_delta, min_factor)


class LearningRate:
    """The learning rate at each step: linear warm-up, then the schedule's curve.

    Args:
        spec: the recipe's `schedule`.
        lr: base learning rate, which the curve multiplies.
        total: training steps, warm-up included.
        per_epoch: steps per epoch.
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
        """Reports the validation loss of an epoch; only `plateau` uses it, after warm-up.

        Args:
            validation_loss: mean over the validation split.
            step: training steps completed at the end of the epoch.
        """
        if isinstance(self._curve, Plateau) and step > self._warmup:
            self._curve.observe(validation_loss)

    def state(self) -> dict[str, Any]:
        """Returns the state to save in a checkpoint."""
        return asdict(self._curve) if isinstance(self._curve, Plateau) else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state that `state` returned."""
        for key, value in state.items():
            setattr(self._curve, key, value)


def _half_cosine(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2
