"""Verification: whether an artifact is what the trained network is, told by its own run-time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf
from cnnbench.data.open import Access
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import evaluation_examples
from cnnbench.errors import VerificationError
from cnnbench.exports.formats.format import format_of
from cnnbench.exports.process import Artifact
from cnnbench.runs import network
from cnnbench.runs.network import Network
from cnnbench.runs.run import Run
from cnnbench.system.processes import WorkerError
from cnnbench.tasks.classification import _tolerance, compare, passes, probabilities

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
