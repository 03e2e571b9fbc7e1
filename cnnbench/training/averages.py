"""Moving averages of weights, and Lookahead's slow weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnbench.backend.lazy import keras, tf


def slow_weights(variables: Sequence[Any]) -> list[Any]:
    """Returns Lookahead's slow weights, which take their values before the first update."""
    return [
        keras.Variable("zeros", v.shape, v.dtype, trainable=False, name=v.path.replace("/", "_"))
        for v in variables
    ]


def follow(slow: Sequence[Any], fast: Sequence[Any], share: float) -> None:
    """Moves slow weights a share of the way to the fast ones, which go on from there.

    Zhang et al. 2019, algorithm 1; the optimizer keeps its state between them.
    """
    for one, other in zip(slow, fast, strict=True):
        value = one + share * (other - one)
        one.assign(value)
        other.assign(value)


def move(averaged: Any, model: Any, step: Any, decay: float) -> None:
    """Moves averages of weights and batch statistics towards those of a model.

    The decay is less in the first steps, (1 + step) / (10 + step), as in TensorFlow's
    ExponentialMovingAverage, so that the initial weights are soon forgotten.
    """
    step = tf.cast(step, tf.float32)
    share = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    for average, variable in zip(averaged.variables, model.variables, strict=True):
        if average.dtype.startswith("float"):  # the others are states of random generators
            average.assign(average + share * (variable - average))
