"""Whether an exported classifier is what the trained network is, and by which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.errors import VerificationError
from cnnbench.tasks.metrics import first_in_top_k

# Bounds on an exported file:
# the share of images for which a float one may name another class,
MAX_DISAGREEMENT = {"float32": 0.001, "float16": 0.005}
# the share of images by which the top-1 of one with integers may be lower,
MAX_DROP = 0.01
# the difference of any logit of a float32 one, over the largest logit,
MAX_LOGIT_DIFFERENCE = 1e-2
# the relative error of the logits of the median image, in the other precisions,
MAX_RELATIVE_ERROR = 0.5
# and the difference of its probabilities from those of its logits: a step of an 8-bit integer.
MAX_PROBABILITY_DIFFERENCE = 0.02


def compare_logits(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compares the logits of an exported file with those of the network.

    Args:
        reference: (images, classes), finite.
        logits: (images, classes) of the file.
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


def passes(row: Mapping[str, Any], precision: str) -> bool:
    """Tells whether a row of verify.json is within row["tolerance"] and the other bounds."""
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
            f"the largest difference is {row.get('max_abs_probability_diff') or 'NaN'}",
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


def _has_own_probabilities(row: Mapping[str, Any]) -> bool:
    gap = row.get("max_abs_probability_diff")
    return gap is not None and gap <= MAX_PROBABILITY_DIFFERENCE


def tolerance(precision: str) -> float:
    """Returns the share of images by which a file of a precision may be worse."""
    return MAX_DISAGREEMENT.get(precision, MAX_DROP)
