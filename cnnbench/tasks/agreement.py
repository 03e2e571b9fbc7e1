"""Verification of an exported classifier against the trained network, and its bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.errors import VerificationError
from cnnbench.tasks.metrics import calibration_error, first_in_top_k

# Float files: fraction of images whose predicted class may differ.
MAX_DISAGREEMENT = {"float32": 0.001, "float16": 0.005}
# Integer files: drop in top-1, as a fraction of the images.
MAX_DROP = 0.01
# float32 files: difference of any logit, relative to the largest logit.
MAX_LOGIT_DIFFERENCE = 1e-2
# All files: difference between the probabilities and those computed from the logits; leaves room
# for a quantization step of an 8-bit integer.
MAX_PROBABILITY_DIFFERENCE = 0.02
# Two results are equal if they differ by this much, which is less than one image in a million.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Bounds:
    """What the measures of a row of verify.json may be at most, apart from rounding.

    relative: "relative_logit_error".
    of_class: "class_logit_error".
    slope: the distance of "logit_slope" from 1.
    nll: the magnitude of "nll_diff", for a network of at most 1 nat; relative to larger ones.
    ece: the magnitude of "ece_diff", besides the share of images that may be worse.
    """

    relative: float
    of_class: float
    slope: float
    nll: float
    ece: float


# About three times the largest errors. Those of the median image are of the artifacts in
# recipes/results, and EfficientNet-B0's are the largest of int8. The other measures are of LeNet-5,
# ResNet-20 and MobileNetV2 trained on the digits.
# float32 has more room, as libraries and devices add in another order.
BOUNDS = {
    "float32": Bounds(1e-3, 2e-3, 1e-3, 1e-3, 1e-3),
    "float16": Bounds(2.5e-3, 5e-3, 2e-3, 2e-3, 2e-3),
    "dynamic": Bounds(0.04, 0.06, 0.01, 0.01, 0.01),
    "int16x8": Bounds(0.06, 0.08, 0.01, 0.01, 0.01),
    "int8": Bounds(0.4, 0.4, 0.08, 0.1, 0.05),
}


def compare_logits(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compares the logits of an exported file with those of the network.

    Args:
        reference: (images, classes) logits of the network; finite.
        logits: (images, classes) logits of the file.
        labels: (images,) true classes.

    Returns:
        Accuracies and agreement as fractions of the images, and measures of the logit differences,
        which are None if any difference is not finite. Medians keep a few images with far larger
        logits, which integers cannot hold, from dominating:

        - "relative_logit_error": norm of the difference over the norm of the reference logits, of
          the median image.
        - "class_logit_error": median magnitude of the difference, of the class with the largest,
          over the root mean square logit of the median image. Classes that changed places have an
          error of about 1, however many others there are.
        - "logit_slope": slope of the least-squares line of the file's logits over the reference's,
          of the median image.
    """
    difference = logits - reference
    is_finite = bool(np.isfinite(difference).all())
    same = first_in_top_k(logits, reference.argmax(axis=1), 1)
    row = {
        "examples": len(labels),
        "top1": float(first_in_top_k(logits, labels, 1).mean()),
        "top5": float(first_in_top_k(logits, labels, 5).mean()),
        "reference_top1": float(first_in_top_k(reference, labels, 1).mean()),
        "reference_top5": float(first_in_top_k(reference, labels, 5).mean()),
        "agreement": float(same.mean()),
        "max_abs_logit_diff": None,
        "mean_abs_logit_diff": None,
        "relative_logit_error": None,
        "class_logit_error": None,
        "logit_slope": None,
        "max_abs_logit": float(np.abs(reference).max()),
    }
    if is_finite:
        size = _norm(reference)
        magnitude = np.abs(difference)
        of_classes = np.median(magnitude, axis=0)
        typical = np.median(size) / reference.shape[1] ** 0.5
        row |= {
            "max_abs_logit_diff": float(magnitude.max()),
            "mean_abs_logit_diff": float(magnitude.mean()),
            "relative_logit_error": float(np.median(_ratio(_norm(difference), size))),
            "class_logit_error": float(_ratio(of_classes.max(), typical)),
            "logit_slope": _slope(reference, difference),
        }
    return row


def compare_calibration(
    reference: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Any]:
    """Compares how well the probabilities of an exported file and of the network are calibrated.

    Args:
        reference: of the network, the (images,) negative log-likelihoods, and the (images, classes)
            probabilities.
        found: the same of the file.
        labels: (images,) true classes.

    Returns:
        The mean negative log-likelihood of the network as "reference_nll", and the differences of
        the file's as "nll_diff" and of its expected calibration error as "ece_diff", None if not
        finite. Both errors have the images in the bins of the network's confidence: otherwise, an
        image that just leaves a bin would count as much as one that moves far.
    """
    (reference_nll, expected), (nll, probabilities) = reference, found
    base = float(reference_nll.mean(dtype=np.float64))
    more = float(nll.mean(dtype=np.float64)) - base
    bins = expected.max(axis=1)
    before, after = (
        calibration_error(p.max(axis=1), p.argmax(axis=1) == labels, bins)
        for p in (expected, probabilities)
    )
    worse = after - before
    return {
        "reference_nll": base,
        "nll_diff": more if np.isfinite(more) else None,
        "ece_diff": worse if np.isfinite(worse) else None,
    }


def passes(row: Mapping[str, Any], precision: str) -> bool:
    """Returns whether a row of verify.json is within row["tolerance"] and the other bounds."""
    is_finite = row["max_abs_logit_diff"] is not None
    return is_finite and _has_own_probabilities(row) and not any(_excesses(row, precision))


def refusal(row: Mapping[str, Any], folder: Path, remedy: str | None = None) -> VerificationError:
    """Returns the error for a row of verify.json that does not pass.

    Args:
        row: the row, with the format and the precision.
        folder: the folder of the exported file.
        remedy: options to suggest if the outputs differ too much from the network's.
    """
    name = f"{row['format']} {row['precision']}"
    if "error" in row:
        return VerificationError(f"{name} does not run: {row['error']}", where=str(folder))
    if row["max_abs_logit_diff"] is None:
        found, allowed = ["a logit is NaN or infinite"], ["finite logits"]
    elif not _has_own_probabilities(row):
        gap = row.get("max_abs_probability_diff", "unknown: an output is missing")
        return VerificationError(
            f"{name}: the probabilities do not match the logits: "
            f"the largest difference is {'NaN' if gap is None else gap}",
            where=str(folder),
            allowed=f"at most {MAX_PROBABILITY_DIFFERENCE}",
        )
    else:
        excesses = list(_excesses(row, row["precision"]))
        found, allowed = [each for each, _ in excesses], [each for _, each in excesses]
        if remedy:
            allowed[-1] += f"; try {remedy}"
    return VerificationError(
        f"{name} agrees with Keras on {row['agreement']:.2%} of {row['examples']} images; "
        f"top-1 {row['top1']:.4f}, Keras {row['reference_top1']:.4f}; {', '.join(found)}",
        where=str(folder),
        allowed=", ".join(allowed),
    )


def tolerance(precision: str) -> float:
    """Returns the fraction of images by which a file of a precision may be worse."""
    return MAX_DISAGREEMENT.get(precision, MAX_DROP)


def _excesses(row: Mapping[str, Any], precision: str) -> Iterator[tuple[str, str]]:
    """Yields, for each measure out of its bounds, what was found and what is allowed.

    Args:
        row: a row of verify.json whose differences are finite.
        precision: of the file.
    """
    bounds, share = BOUNDS[precision], row["tolerance"]
    if precision in MAX_DISAGREEMENT:
        if 1 - row["agreement"] > share + ROUNDING:
            yield f"agreement {row['agreement']:.2%}", f"at least {1 - share:.2%}"
    elif row["reference_top1"] - row["top1"] > share + ROUNDING:
        yield f"top-1 {row['top1']:.4f}", f"a top-1 at most {share:.2%} below"
    wandering = row["max_abs_logit_diff"] / max(row["max_abs_logit"], 1e-30)
    if precision == "float32" and wandering > MAX_LOGIT_DIFFERENCE:
        yield (
            f"a logit differs by {wandering:.2%} of the largest",
            f"at most {MAX_LOGIT_DIFFERENCE:.0%}",
        )
    for title, key, centre, bound in (
        ("relative error of the logits", "relative_logit_error", 0, bounds.relative),
        ("error of the logits of a class", "class_logit_error", 0, bounds.of_class),
        ("slope of the logits", "logit_slope", 1, bounds.slope),
        ("difference in NLL", "nll_diff", 0, bounds.nll * max(1, row["reference_nll"])),
        # Each image that may change its class can move the error by itself.
        ("difference in ECE", "ece_diff", 0, bounds.ece + share),
    ):
        value = row[key]
        if value is None or abs(value - centre) > bound + ROUNDING:
            shown = "NaN" if value is None else f"{value:.3g}"
            yield f"{title} {shown}", f"at most {bound:.2g}" + (" from 1" if centre else "")


def _slope(reference: np.ndarray, difference: np.ndarray) -> float:
    """Returns 1 plus the slope of the difference over the reference, of the median image."""
    centred = reference - reference.mean(axis=1, keepdims=True)
    product = np.sum(centred * difference, axis=1, dtype=np.float64)
    square = np.sum(centred * centred, axis=1, dtype=np.float64)
    return 1 + float(np.median(_ratio(product, square)))


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(rows), axis=1, dtype=np.float64))


def _ratio(value: Any, unit: Any) -> Any:
    """Returns value / unit; a value of 0 is 0 in any unit."""
    return value / np.maximum(unit, 1e-30)


def _has_own_probabilities(row: Mapping[str, Any]) -> bool:
    gap = row.get("max_abs_probability_diff")
    return gap is not None and gap <= MAX_PROBABILITY_DIFFERENCE
