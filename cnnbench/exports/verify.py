"""Verification: comparison of an artifact, in its own runtime, with the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend import session
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


class Reference:
    """The network's outputs on test images, with which artifacts are compared.

    Raises:
        VerificationError: an output is not finite.
    """

    def __init__(self, run: Run, net: Network, examples: int, access: Access):
        dataset = network.open_data(run, access)
        chosen, _ = evaluation_examples(dataset, run.recipe.data, "test")
        chosen = chosen.take(slice(examples))
        compute = tf.function(net, autograph=False)
        batch_size = min(run.recipe.data.batch_size, len(chosen))
        pixels, truth, rows = [], [], []
        size = net.pixel_shape[:2]
        with session.exact_float32():
            for images, targets, count in evaluation_batches(
                chosen, run.recipe.data, size, batch_size
            ):
                pixels.append(images[:count])
                truth.append(targets[:count])
                rows.append({name: each.numpy()[:count] for name, each in compute(images).items()})
        self._images, self._targets = np.concatenate(pixels), np.concatenate(truth)
        self._outputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        self._net = net
        if not all(np.isfinite(each).all() for each in self._outputs.values()):
            raise VerificationError("the network's outputs are not finite")

    def verify(
        self, artifact: Path, precision: str, tolerance: float | None = None
    ) -> dict[str, Any]:
        """Runs an artifact on every image, in a separate process, and compares its outputs.

        Args:
            artifact: the file or folder.
            precision: its precision.
            tolerance: share of the images, in [0, 1]; None: the default of the precision.

        Returns:
            The measured part of the row of verify.json; it has "error" if the runtime failed.
        """
        task, images = self._net.task, self._images
        share = task.tolerance(precision) if tolerance is None else tolerance
        try:
            with Artifact(*format_of(artifact)) as opened:
                if not opened.takes_pixels:
                    images = self._net.preprocess(images).numpy()
                speed = opened.speed(images)
                outputs = self._read(opened.outputs(images))
                found, expected = (each[task.primary].shape for each in (outputs, self._outputs))
                if found != expected:
                    raise WorkerError(f"the outputs have shape {found}, not {expected}")
                row = task.agreement(self._outputs, outputs, self._targets, self._net.loss)
                row |= speed | {"tolerance": share}
                row["passed"] = task.passes(row, precision)
                if row["passed"]:
                    row["best_batch"] = opened.best_batch(images)
        except WorkerError as error:
            return {"examples": len(self._targets), "error": str(error), "passed": False}
        return row

    def _read(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return self._net.task.read(outputs)
        except ValueError as error:
            raise WorkerError(str(error)) from None
