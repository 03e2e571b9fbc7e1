"""Classification metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf

CONFIDENCE_BINS = 15


def in_top_k(logits: Any, labels: Any, k: int) -> Any:
    """Returns whether the label is among the k highest logits.

    Ties count against the network, so that constant or NaN logits are never correct.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        k: number of classes to consider.

    Returns:
        (batch,) bool.
    """
    own = tf.gather(logits, labels, batch_dims=1)[:, None]
    as_high = tf.reduce_sum(tf.cast(tf.logical_not(logits < own), tf.int32), axis=-1)
    return tf.logical_and(as_high <= k, tf.math.is_finite(own[:, 0]))


def first_in_top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Returns whether the label is among the first k classes, as ranked on a device.

    The first of equal logits ranks highest, as in argmax; quantized logits are often equal. A row
    with a NaN or infinite logit is never correct.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        k: number of classes to consider.

    Returns:
        (batch,) bool.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return (order == labels[:, None]).any(axis=1) & np.isfinite(logits).all(axis=1)


def calibration_error(
    confidence: np.ndarray, right: np.ndarray, bins: np.ndarray | None = None
) -> float:
    """Returns the expected calibration error of the top class (Guo et al. 2017, equation 3).

    Args:
        confidence: (examples,) probabilities of the predicted classes.
        right: (examples,) bool, whether the predicted class is the true one.
        bins: (examples,) confidences in [0, 1] that decide which of CONFIDENCE_BINS intervals of
            equal width an example is in; None: its own.

    Returns:
        The error in [0, 1].
    """
    deciding = confidence if bins is None else bins
    bin_of = np.minimum((deciding * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bin_of, right - confidence, CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(right))


class Confusion:
    """How often each class was predicted for each true class, in memory that grows with examples.

    Args:
        predicted: (examples,) predicted classes.
        labels: (examples,) true classes.
        classes: number of classes.
    """

    def __init__(self, predicted: np.ndarray, labels: np.ndarray, classes: int):
        self.classes = classes
        found, self._counts = np.unique(
            labels.astype(np.int64) * classes + predicted, return_counts=True
        )
        self._true, self._predicted = np.divmod(found, classes)

    def examples(self) -> np.ndarray:
        """Returns the number of examples of each true class, (classes,) int64."""
        return self._of_each(np.ones(len(self._true), bool))

    def right(self) -> np.ndarray:
        """Returns how many examples of each true class were predicted as such, (classes,) int64."""
        return self._of_each(self._true == self._predicted)

    def matrix(self) -> np.ndarray:
        """Returns the (classes, classes) int64 matrix; rows are true, columns predicted classes."""
        matrix = np.zeros((self.classes, self.classes), np.int64)
        matrix[self._true, self._predicted] = self._counts
        return matrix

    def mistakes(self, most: int) -> tuple[list[list[int]], int]:
        """Returns the most frequent mistakes, and the number of examples in all the others.

        Args:
            most: how many mistakes to return at most.

        Returns:
            [true class, predicted class, count] of each, in descending order of the counts, and the
            number of examples whose mistake is not among them.
        """
        wrong = np.flatnonzero(self._true != self._predicted)
        wrong = wrong[np.argsort(-self._counts[wrong], kind="stable")]
        shown = wrong[:most]
        pairs = np.column_stack([self._true[shown], self._predicted[shown], self._counts[shown]])
        return pairs.tolist(), int(self._counts[wrong[most:]].sum())

    def _of_each(self, chosen: np.ndarray) -> np.ndarray:
        counts = np.zeros(self.classes, np.int64)
        np.add.at(counts, self._true[chosen], self._counts[chosen])
        return counts


def per_class(classes: Sequence[str], found: Confusion) -> list[dict[str, Any]]:
    """Returns name, number of examples and top-1 (None without examples) of each class."""
    return [
        {"class": name, "examples": count, "top1": right / count if count else None}
        for name, count, right in zip(
            classes, found.examples().tolist(), found.right().tolist(), strict=True
        )
    ]
