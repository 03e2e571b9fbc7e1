"""Classification: losses, and the sums that its metrics are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from cnnbench.backend.lazy import tf
from cnnbench.errors import VerificationError
from cnnbench.registry.kinds import LOSSES

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


def _scores(logits: Any, labels: Any, recipe: Any) -> dict[str, Any]:
    """Returns what each example scores, of (batch, classes) logits and (batch,) labels."""
    classes = logits.shape[-1]
    shares = probabilities(logits, recipe.loss.name)
    own = tf.gather(shares, labels, batch_dims=1)
    return {
        "loss": LOSSES.build(recipe.loss, logits, tf.one_hot(labels, classes)),
        "nll": -tf.math.log(tf.maximum(own, 1e-30)),
        "top1": in_top_k(logits, labels, 1),
        "top5": in_top_k(logits, labels, min(5, classes)),
        "probabilities": shares,
    }


def _per_class(classes: tuple[str, ...], matrix: np.ndarray) -> list[dict[str, Any]]:
    """Returns each class's name, examples, and share of them that is right (None without any)."""
    counts = matrix.sum(axis=1).tolist()
    return [
        {"class": name, "examples": count, "top1": float(right) / count if count else None}
        for name, count, right in zip(classes, counts, matrix.diagonal(), strict=True)
    ]


# A float artifact may name another class for so many of the images,
MAX_DISAGREEMENT = {"float32": 0.001, "float16": 0.005}


# one with integers may be right on so many fewer,
MAX_DROP = 0.01


# and no logit of a float32 one differs by more than this share of the largest.
MAX_LOGIT_DIFFERENCE = 1e-2


# Those of the others may, of the median image, be off by so much of their length.
MAX_RELATIVE_ERROR = 0.5


# Its probabilities are those of its logits, but for the step of an integer between them; and they
# are asked for of so many images.
MAX_PROBABILITY_DIFFERENCE = 0.02


def compare(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compares the answers of an artifact with those of the network.

    Args:
        reference: (images, classes), finite.
        logits: (images, classes) of the artifact.
        labels: (images,) the true classes.

    Returns:
        Shares of the images, and differences of logits, None where any is not finite;
        "relative_logit_error" is, of the median image, the length of the difference of the logits
        over that of the logits: a few images whose logits are far larger than others' say nothing
        of the rest.
    """
    difference = np.abs(reference - logits)
    is_finite = bool(np.isfinite(difference).all())
    same = first_in_top_k(logits, reference.argmax(axis=1), 1)
    return {
        "examples": len(labels),
        "top1": float(first_in_top_k(logits, labels, 1).mean()),
        "top5": float(first_in_top_k(logits, labels, 5).mean()),
        "reference_top1": float(first_in_top_k(reference, labels, 1).mean()),
        "reference_top5": float(first_in_top_k(reference, labels, 5).mean()),
        "agreement": float(same.mean()),
        "max_abs_logit_diff": float(difference.max()) if is_finite else None,
        "mean_abs_logit_diff": float(difference.mean()) if is_finite else None,
        "relative_logit_error": _relative_error(difference, reference) if is_finite else None,
        "max_abs_logit": float(np.abs(reference).max()),
    }


def passes(row: dict[str, Any], precision: str) -> bool:
    """Tells whether what `compare` found is within row["tolerance"]."""
    if row["max_abs_logit_diff"] is None:
        return False
    if not _has_own_probabilities(row):
        return False
    if precision != "float32" and row["relative_logit_error"] > MAX_RELATIVE_ERROR:
        return False
    if precision not in MAX_DISAGREEMENT:
        return row["reference_top1"] - row["top1"] <= row["tolerance"] + 1e-9
    bound = MAX_LOGIT_DIFFERENCE * row["max_abs_logit"]
    is_near = precision != "float32" or row["max_abs_logit_diff"] <= bound
    return is_near and 1 - row["agreement"] <= row["tolerance"] + 1e-9


def refusal(row: dict[str, Any], folder: Path, remedy: str | None = None) -> VerificationError:
    """Returns the error for a row that did not pass.

    Args:
        row: of verify.json.
        folder: where the artifact is.
        remedy: options to try where its answers are too far from the network's.
    """
    name = f"{row['format']} {row['precision']}"
    if "error" in row:
        return VerificationError(f"{name} does not run: {row['error']}", where=str(folder))
    share = row["tolerance"]
    if row["precision"] in MAX_DISAGREEMENT:
        allowed = f"at least {1 - share:.2%}"
    else:
        allowed = f"a top-1 at most {share:.2%} below"
    if row["precision"] == "float32":
        allowed += f", and {MAX_LOGIT_DIFFERENCE:.0%} of the largest logit"
    else:
        allowed += f", and a relative error of the logits of {MAX_RELATIVE_ERROR:g}"
    difference = row["max_abs_logit_diff"]
    if difference is not None and not _has_own_probabilities(row):
        return VerificationError(
            f"{name}: the probabilities are not those of the logits: "
            f"the largest difference is {row['max_abs_probability_diff'] or 'NaN'}",
            where=str(folder),
            allowed=f"at most {MAX_PROBABILITY_DIFFERENCE}",
        )
    return VerificationError(
        f"{name} agrees with Keras on {row['agreement']:.2%} of {row['examples']} images; "
        f"top-1 {row['top1']:.4f}, Keras {row['reference_top1']:.4f}; "
        "largest difference of a logit: "
        + ("NaN or infinite" if difference is None else f"{difference:.3g}")
        + f", largest logit {row['max_abs_logit']:.3g}"
        + ("" if difference is None else f", relative error {row['relative_logit_error']:.3g}"),
        where=str(folder),
        allowed=allowed + (f"; try {remedy}" if remedy and difference is not None else ""),
    )


def _relative_error(difference: np.ndarray, reference: np.ndarray) -> float:
    lost, whole = (np.linalg.norm(x.astype(np.float64), axis=1) for x in (difference, reference))
    return float(np.median(lost / np.maximum(whole, 1e-30)))


def _has_own_probabilities(row: dict[str, Any]) -> bool:
    gap = row["max_abs_probability_diff"]
    return gap is not None and gap <= MAX_PROBABILITY_DIFFERENCE


def _tolerance(precision: str) -> float:
    return MAX_DISAGREEMENT.get(precision, MAX_DROP)
