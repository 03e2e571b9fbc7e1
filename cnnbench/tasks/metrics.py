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
    probabilities: np.ndarray, labels: np.ndarray, bins: np.ndarray | None = None
) -> float:
    """Returns the expected calibration error of the top class (Guo et al. 2017, equation 3).

    Args:
        probabilities: (examples, classes).
        labels: (examples,).
        bins: (examples,) confidences in [0, 1] that decide which of CONFIDENCE_BINS intervals of
            equal width an example is in; None: its own.

    Returns:
        The error in [0, 1].
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    deciding = confidence if bins is None else bins
    bin_of = np.minimum((deciding * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bin_of, right - confidence, CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the (classes, classes) confusion matrix; rows are true, columns predicted classes."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def per_class(classes: Sequence[str], matrix: np.ndarray) -> list[dict[str, Any]]:
    """Returns name, number of examples and top-1 (None without examples) of each class."""
    counts = matrix.sum(axis=1).tolist()
    return [
        {"class": name, "examples": count, "top1": float(correct) / count if count else None}
        for name, count, correct in zip(classes, counts, matrix.diagonal(), strict=True)
    ]
