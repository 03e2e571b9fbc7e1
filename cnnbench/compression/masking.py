"""Pruning during training: masks that are updated periodically and applied at each step."""

from __future__ import annotations

import math
from typing import Any

from cnnbench.backend.lazy import tf
from cnnbench.compression import prune
from cnnbench.compression.stages import Pruning

# Minimum number of mask updates, if there are that many steps.
LEAST_CHANGES = 10


class Masking:
    """The pruning masks of a network's kernels, with their schedule.

    Args:
        model: the network in training.
        averaged: a model with the averages of its weights, or None.
        stage: the pruning stage; None: no more weights are pruned.
        initial: sparsity at the start of the stage, in [0, 1], if an earlier stage pruned: the
            zeros of then stay. None: none did, and zeros are weights like others, such as those of
            kernels that are initialized as identities.
        steps: training steps of the stage.
    """

    def __init__(
        self, model: Any, averaged: Any, stage: Pruning | None, initial: float | None, steps: int
    ):
        self._stage, self._initial = stage, initial
        self._begin = round(stage.begin_at * steps) if stage else 0
        self._end = max(1, round(stage.end_at * steps)) if stage else 0
        self._kernels = prune.prunable(model)
        self._averages = prune.prunable(averaged) if averaged is not None else []
        self.variables: list[Any] = prune.masks_like(self._kernels)

    def initialize(self) -> None:
        """Masks the weights that an earlier stage pruned."""
        if self._initial is None:
            return
        for mask, kernel in zip(self.variables, self._kernels, strict=True):
            mask.assign(tf.cast(tf.not_equal(kernel, 0), mask.dtype))

    def sparsity_after(self, step: int) -> float:
        """Returns the target sparsity of the mask update after a step; NaN if there is none.

        Steps are counted from 0.
        """
        if self._stage is None:
            return math.nan
        begin, end, done = self._begin, self._end, step + 1
        every = min(self._stage.every, max(1, (end - begin) // LEAST_CHANGES))
        is_due = begin <= done < end and (done - begin) % every == 0
        if done != end and not is_due:
            return math.nan
        return prune.sparsity_at(done, begin, end, self._stage.sparsity, self._initial or 0.0)

    def is_settled(self, steps: int) -> bool:
        """Returns whether no more weights are pruned after this number of steps."""
        return steps >= self._end

    def obey(self, sparsity: Any) -> None:
        """Updates the masks to a sparsity, unless it is NaN, and applies them."""
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
