"""Classification: losses, and the sums that its metrics are made of."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from cnnbench.lazy import tf
from cnnbench.parts import LOSSES

Smoothing = Annotated[float, Field(ge=0, lt=1)]


@LOSSES.register("cross_entropy", probabilities="softmax")
def cross_entropy(logits: Any, labels: Any, *, label_smoothing: Smoothing = 0.0) -> Any:
    """Softmax cross-entropy; smoothing after Szegedy et al. 2016, section 7.

    Args:
        logits: (batch, classes) float32.
        labels: (batch, classes) float32, rows that sum to 1.
        label_smoothing: share of the label that is spread evenly over all classes.

    Returns:
        (batch,) float32, in nats.
    """
    return tf.nn.softmax_cross_entropy_with_logits(_smooth(labels, label_smoothing), logits)


@LOSSES.register("mean_squared_error", probabilities="softmax")
def mean_squared_error(logits: Any, labels: Any) -> Any:
    """Squared difference of softmax probabilities and labels, summed over classes (Brier 1950).

    Args and Returns: as for cross_entropy.
    """
    return tf.reduce_sum(tf.math.squared_difference(tf.nn.softmax(logits), labels), axis=-1)


@LOSSES.register("binary_cross_entropy", probabilities="sigmoid")
def binary_cross_entropy(logits: Any, labels: Any, *, label_smoothing: Smoothing = 0.0) -> Any:
    """Log loss of each class by itself, mean over classes (Wightman et al. 2021).

    Args and Returns: as for cross_entropy.
    """
    labels = _smooth(labels, label_smoothing)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(losses, axis=-1)


@LOSSES.register("focal", probabilities="sigmoid", hard_labels=True)
def focal(
    logits: Any,
    labels: Any,
    *,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.25,
    gamma: Annotated[float, Field(ge=0)] = 2.0,
) -> Any:
    """Log loss that looks away from what is already right (Lin et al. 2017, equation 5).

    Args and Returns: as for cross_entropy; the sum over classes.
    """
    import keras_cv  # archived, and slow to import: used for this alone, behind this function

    loss = keras_cv.losses.FocalLoss(alpha, gamma, from_logits=True, reduction="none")
    return loss(labels, logits)


def probabilities(logits: Any, loss: str) -> Any:
    """Returns the (batch, classes) probabilities that logits trained with a loss stand for."""
    return getattr(tf.nn, LOSSES.get(loss).facts["probabilities"])(logits)


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


def _smooth(labels: Any, share: float) -> Any:
    classes = labels.shape[-1]
    return labels * (1 - share) + share / classes if share else labels
