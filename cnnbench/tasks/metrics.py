"""Metrics of classification, and the sums that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf


def in_top_k(logits: Any, labels: Any, k: int) -> Any:
    """Tells, (batch,) bool, whether fewer than k classes score at least as high as the label.

    A tie counts against the network, so that constant or NaN logits are never right.
    """
    own = tf.gather(logits, labels, batch_dims=1)[:, None]
    as_high = tf.reduce_sum(tf.cast(tf.logical_not(logits < own), tf.int32), axis=-1)
    return tf.logical_and(as_high <= k, tf.math.is_finite(own[:, 0]))


def first_in_top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Tells, (batch,) bool, whether the label is among the k classes that a device would name.

    Of equal logits, which integers often are, the first goes first, as argmax has it. A row that is
    not finite is never right.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return (order == labels[:, None]).any(axis=1) & np.isfinite(logits).all(axis=1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the top class (Guo et al. 2017, equation 3), 0-1.

    Args:
        probabilities: (examples, classes).
        labels: (examples,).
        bins: intervals of equal width that confidence is sorted into.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, right - confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns (classes, classes) counts: rows are true classes, columns predicted ones."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def per_class(classes: Sequence[str], matrix: np.ndarray) -> list[dict[str, Any]]:
    """Returns each class's name, examples, and share of them that is right (None without any)."""
    counts = matrix.sum(axis=1).tolist()
    return [
        {"class": name, "examples": count, "top1": float(right) / count if count else None}
        for name, count, right in zip(classes, counts, matrix.diagonal(), strict=True)
    ]
