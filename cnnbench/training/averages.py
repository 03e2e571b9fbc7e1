"""Moving averages of weights, and Lookahead's slow weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnbench.backend.lazy import keras, tf


def slow_weights(variables: Sequence[Any]) -> list[Any]:
    """Returns Lookahead's slow weights, which are initialized before the first update."""
    return [
        keras.Variable("zeros", v.shape, v.dtype, trainable=False, name=v.path.replace("/", "_"))
        for v in variables
    ]


def follow(slow: Sequence[Any], fast: Sequence[Any], share: float) -> None:
    """Moves the slow weights towards the fast weights, and sets the fast weights to them.

    Zhang et al. 2019, algorithm 1; the optimizer's state is kept.

    Args:
        slow: slow weights, one for each fast weight.
        fast: the weights that the optimizer updates.
        share: fraction of the way to move, in [0, 1]; alpha in the paper.
    """
    for slow_weight, fast_weight in zip(slow, fast, strict=True):
        value = slow_weight + share * (fast_weight - slow_weight)
        slow_weight.assign(value)
        fast_weight.assign(value)


def move(averaged: Any, model: Any, step: Any, decay: float) -> None:
    """Updates the moving averages of a model's weights and batch-norm statistics.

    In the first steps the decay is lower, (1 + step) / (10 + step), as in TensorFlow's
    ExponentialMovingAverage, so that the initial weights are forgotten quickly.

    Args:
        averaged: the model that holds the averages.
        model: the model being trained.
        step: training steps done.
        decay: upper bound of the decay, in [0, 1].
    """
    step = tf.cast(step, tf.float32)
    share = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    for average, variable in zip(averaged.variables, model.variables, strict=True):
        if average.dtype.startswith("float"):  # integers are states of random generators
            average.assign(average + share * (variable - average))
