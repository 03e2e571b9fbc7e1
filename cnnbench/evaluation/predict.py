"""Predictions of a trained network for image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend import session
from cnnbench.data import images, survey
from cnnbench.data.preprocess import fit, reading
from cnnbench.errors import DataError, UsageError
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
        "top": a list of {"class", "probability"} in descending order of probability. If the file
        is missing or no image, or the run has seen none whose values have that range, the row has
        "error" instead, the reason.

    Raises:
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
    net = network.restore(run)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        read: dict[int, np.ndarray] = {}
        found: list[dict[str, Any]] = [{"file": str(path)} for path in some]
        for place, path in enumerate(some):
            try:
                images.must_be_file(Path(path))
                survey.must_be_known(Path(path), about.pixels, options["value_range"])
                read[place] = fit(images.read(Path(path), **options), run.recipe.data, size)
            except (DataError, UsageError) as error:
                found[place]["error"] = str(error)
        if read:
            outputs = net(np.stack(list(read.values())))
            outputs = {name: each.numpy() for name, each in outputs.items()}
            predictions = net.task.predictions(outputs, net.classes, top)
            for place, row in zip(read, predictions, strict=True):
                found[place] |= row
        rows += found
    return rows
