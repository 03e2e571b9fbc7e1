"""Classification losses."""

from __future__ import annotations

from typing import Any

from cnnbench.backend.lazy import tf
from cnnbench.registry.kinds import LOSSES
from cnnbench.registry.limits import Fraction, NonNegative, Rate


@LOSSES.register("cross_entropy", probabilities="softmax")
def cross_entropy(logits: Any, labels: Any, *, label_smoothing: Rate = 0.0) -> Any:
    """Softmax cross-entropy, with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        logits: (batch, classes) float32.
        labels: (batch, classes) float32, rows that sum to 1.
        label_smoothing: fraction of the label that is spread evenly over all classes.

    Returns:
        (batch,) float32, in nats.
    """
    return tf.nn.softmax_cross_entropy_with_logits(_smooth(labels, label_smoothing), logits)


@LOSSES.register("mean_squared_error", probabilities="softmax")
def mean_squared_error(logits: Any, labels: Any) -> Any:
    """Squared error of the softmax probabilities, summed over classes (Brier 1950).

    See cross_entropy for Args and Returns.
    """
    return tf.reduce_sum(tf.math.squared_difference(tf.nn.softmax(logits), labels), axis=-1)


@LOSSES.register("binary_cross_entropy", probabilities="sigmoid")
def binary_cross_entropy(logits: Any, labels: Any, *, label_smoothing: Rate = 0.0) -> Any:
    """Sigmoid cross-entropy of each class, averaged over classes (Wightman et al. 2021).

    See cross_entropy for Args and Returns.
    """
    labels = _smooth(labels, label_smoothing)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(losses, axis=-1)


@LOSSES.register("focal", probabilities="sigmoid", hard_labels=True)
def focal(
    logits: Any,
    labels: Any,
    *,
    alpha: Fraction = 0.25,
    gamma: NonNegative = 2.0,
) -> Any:
    """Sigmoid focal loss, which down-weights easy examples (Lin et al. 2017, equation 5).

    See cross_entropy for Args and Returns; the loss is summed over classes.
    """
    import keras_cv  # archived and slow to import, so used only here

    loss = keras_cv.losses.FocalLoss(alpha, gamma, from_logits=True, reduction="none")
    return loss(labels, logits)


def _smooth(labels: Any, smoothing: float) -> Any:
    if not smoothing:
        return labels
    return labels * (1 - smoothing) + smoothing / labels.shape[-1]
