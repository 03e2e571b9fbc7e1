"""Predictions of a trained network for image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend import session
from cnnbench.data import images, survey
from cnnbench.data.preprocess import fit, reading
from cnnbench.runs import network
from cnnbench.runs.run import Run

BATCH = 32


@session.isolated()
def predict(run: Run, paths: Sequence[str | Path], *, top: int = 5) -> list[dict[str, Any]]:
    """Predicts image files of any common format and size.

    Args:
        run: a run with weights.
        paths: the image files.
        top: number of classes to return for each file.

    Returns:
        One row per file: "file", and the prediction of the run's task. For classification, that is
        "top": a list of {"class", "probability"} in descending order of probability.

    Raises:
        DataError: a file is missing or is not an image, or the run has seen none whose values
            have that range.
        RunError: the run has no weights.

    Example:
        >>> import cnnbench
        >>> run = cnnbench.open_run("runs/digits")
        >>> (row,) = cnnbench.predict(run, ["digit.png"], top=3)
        >>> row["file"], len(row["top"])
        ('digit.png', 3)
    """
    about = run.data()
    size, stored = (about.input_shape[0], about.input_shape[1]), about.stored_channels
    options = reading(run.recipe.data, stored, size)
    for path in paths:
        survey.must_be_known(Path(path), about.pixels, options["value_range"])
    pixels = [fit(images.read(Path(path), **options), run.recipe.data, size) for path in paths]
    net = network.restore(run)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pixels), BATCH):
        outputs = net(np.stack(pixels[start : start + BATCH]))
        found = {name: each.numpy() for name, each in outputs.items()}
        rows += net.task.predictions(found, net.classes, top)
    return [{"file": str(path), **row} for path, row in zip(paths, rows, strict=True)]
