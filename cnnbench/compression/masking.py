"""Pruning while a network trains: masks that are chosen anew now and then, and always obeyed."""

from __future__ import annotations

import math
from typing import Any

from cnnbench.backend.lazy import tf
from cnnbench.compression import prune
from cnnbench.compression.stages import Pruning

# How often masks change on the way at least, where there are so many steps.
LEAST_CHANGES = 10


class Masking:
    """The masks of a network's kernels, and what a step of training does by them.

    Args:
        model: that is trained.
        averaged: a model with the averages of its weights, or none.
        stage: that prunes; None: what is zero at the beginning stays so.
        initial: the sparsity that the stage begins with.
        steps: that the stage trains.
    """

    def __init__(
        self, model: Any, averaged: Any, stage: Pruning | None, initial: float, steps: int
    ):
        self._stage, self._initial = stage, initial
        self._begin = round(stage.begin_at * steps) if stage else 0
        self._end = max(1, round(stage.end_at * steps)) if stage else 0
        self._kernels = prune.prunable(model)
        self._averages = prune.prunable(averaged) if averaged is not None else []
        self.variables: list[Any] = prune.masks_like(self._kernels)

    def initialize(self) -> None:
        """Lets the masks keep what is not zero."""
        for mask, kernel in zip(self.variables, self._kernels, strict=True):
            mask.assign(tf.cast(tf.not_equal(kernel, 0), mask.dtype))

    def sparsity_after(self, step: int) -> float:
        """Returns the sparsity that masks are to be chosen for after a step, NaN where they stay.

        The first step is number 0.
        """
        if self._stage is None:
            return math.nan
        begin, end, done = self._begin, self._end, step + 1
        every = min(self._stage.every, max(1, (end - begin) // LEAST_CHANGES))
        if done != end and not (begin <= done < end and (done - begin) % every == 0):
            return math.nan
        return prune.sparsity_at(done, begin, end, self._stage.sparsity, self._initial)

    def is_settled(self, steps: int) -> bool:
        """Tells whether after so many steps nothing more is set to zero."""
        return steps >= self._end

    def obey(self, sparsity: Any) -> None:
        """Chooses masks for a sparsity, unless it is NaN, and sets to zero what they leave out."""
        stage = self._stage
        if stage is not None:

            def choose() -> Any:
                if stage.pattern == "2:4":
                    prune.update_two_of_four(self._kernels, self.variables)
                else:
                    prune.update(self._kernels, self.variables, sparsity, stage.scope)
                return tf.constant(0)

            tf.cond(tf.math.is_nan(sparsity), lambda: tf.constant(0), choose)
        prune.apply(self._kernels, self.variables)
        if self._averages:
            prune.apply(self._averages, self.variables)
