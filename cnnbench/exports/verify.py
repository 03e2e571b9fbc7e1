"""Verification: whether an artifact is what the trained network is, told by its own run-time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import network
from cnnbench.artifacts import format_of
from cnnbench.artifacts.process import Artifact
from cnnbench.data.datasets import Access
from cnnbench.data.pipeline import evaluation_batches, evaluation_examples
from cnnbench.errors import VerificationError
from cnnbench.lazy import tf
from cnnbench.network import Network
from cnnbench.run import Run
from cnnbench.tasks.classification import first_in_top_k, probabilities
from cnnbench.workers import WorkerError

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
PROBABILITIES = 32


class Reference:
    """The network's own answers on test images, which artifacts are compared with."""

    def __init__(self, run: Run, net: Network, examples: int, access: Access):
        dataset = network.open_data(run, access)
        chosen, _ = evaluation_examples(dataset, run.recipe.data, "test")
        chosen = chosen.take(slice(examples))
        answer = tf.function(net, autograph=False)
        batch_size = min(run.recipe.data.batch_size, len(chosen))
        pixels, truth, logits = [], [], []
        for images, labels, count in evaluation_batches(
            chosen, run.recipe.data, net.pixel_shape[:2], batch_size
        ):
            pixels.append(images[:count])
            truth.append(labels[:count])
            logits.append(answer(images)["logits"].numpy()[:count])
        self.images, self.labels = np.concatenate(pixels), np.concatenate(truth)
        self.logits = np.concatenate(logits)
        self._preprocess, self._loss = net.preprocess, net.loss
        if not np.isfinite(self.logits).all():
            raise VerificationError("the network's own logits are not finite")

    def verify(
        self, artifact: Path, precision: str, tolerance: float | None = None
    ) -> dict[str, Any]:
        """Runs an artifact on every image, in a process of its own, and compares its answers.

        Args:
            artifact: its file or folder.
            precision: what it was written in.
            tolerance: a share of the images; None: what is usual for the precision.

        Returns:
            The row of verify.json, as far as it is measured; "error" if the run-time fails.
        """
        share = _tolerance(precision) if tolerance is None else tolerance
        try:
            with Artifact(*format_of(artifact)) as opened:
                images = self.images if opened.takes_pixels else self._normalised()
                speed = opened.speed(images)
                logits = opened.logits(images)
                if logits.shape != self.logits.shape:
                    raise WorkerError(f"the outputs are {logits.shape}, not {self.logits.shape}")
                row = compare(self.logits, logits, self.labels) | speed | {"tolerance": share}
                shares = opened.probabilities(images[:PROBABILITIES])
                expected = self._probabilities(logits[:PROBABILITIES])
                gap = float(np.abs(shares - expected).max())
                row["max_abs_probability_diff"] = gap if np.isfinite(gap) else None
                row["passed"] = passes(row, precision)
                if row["passed"]:
                    row["best_batch"] = opened.best_batch(images)
        except WorkerError as error:
            return {"examples": len(self.labels), "error": str(error), "passed": False}
        return row

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        return probabilities(logits, self._loss).numpy()

    def _normalised(self) -> np.ndarray:
        return self._preprocess(self.images).numpy()


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
