"""Verification of an exported classifier against the trained network, and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.errors import VerificationError
from cnnbench.tasks.metrics import first_in_top_k

# Float files: fraction of images whose predicted class may differ.
MAX_DISAGREEMENT = {"float32": 0.001, "float16": 0.005}
# Integer files: drop in top-1, as a fraction of the images.
MAX_DROP = 0.01
# float32 files: difference of any logit, relative to the largest logit.
MAX_LOGIT_DIFFERENCE = 1e-2
# Other precisions: relative error of the logits of the median image.
MAX_RELATIVE_ERROR = 0.5
# All files: difference between the probabilities and those computed from the logits; leaves room
# for a quantization step of an 8-bit integer.
MAX_PROBABILITY_DIFFERENCE = 0.02


def compare_logits(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compares the logits of an exported file with those of the network.

    Args:
        reference: (images, classes) logits of the network; finite.
        logits: (images, classes) logits of the file.
        labels: (images,) true classes.

    Returns:
        Accuracies and agreement as fractions of the images, and logit differences, which are None
        if any difference is not finite. "relative_logit_error" is the norm of the logit difference
        over the norm of the reference logits, for the median image, so that a few images with far
        larger logits do not dominate.
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


def passes(row: Mapping[str, Any], precision: str) -> bool:
    """Returns whether a row of verify.json is within row["tolerance"] and the other bounds."""
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
        gap = row.get("max_abs_probability_diff", "unknown: an output is missing")
        return VerificationError(
            f"{name}: the probabilities do not match the logits: "
            f"the largest difference is {'NaN' if gap is None else gap}",
            where=str(folder),
            allowed=f"at most {MAX_PROBABILITY_DIFFERENCE}",
        )
    return VerificationError(
        f"{name} agrees with Keras on {row['agreement']:.2%} of {row['examples']} images; "
        f"top-1 {row['top1']:.4f}, Keras {row['reference_top1']:.4f}; "
        "largest logit difference: "
        + ("NaN or infinite" if difference is None else f"{difference:.3g}")
        + f", largest logit {row['max_abs_logit']:.3g}"
        + ("" if difference is None else f", relative error {row['relative_logit_error']:.3g}"),
        where=str(folder),
        allowed=allowed + (f"; try {remedy}" if remedy and difference is not None else ""),
    )


def _relative_error(difference: np.ndarray, reference: np.ndarray) -> float:
    error = np.linalg.norm(difference.astype(np.float64), axis=1)
    norm = np.linalg.norm(reference.astype(np.float64), axis=1)
    return float(np.median(error / np.maximum(norm, 1e-30)))


def _has_own_probabilities(row: Mapping[str, Any]) -> bool:
    gap = row.get("max_abs_probability_diff")
    return gap is not None and gap <= MAX_PROBABILITY_DIFFERENCE


def tolerance(precision: str) -> float:
    """Returns the fraction of images by which a file of a precision may be worse."""
    return MAX_DISAGREEMENT.get(precision, MAX_DROP)
