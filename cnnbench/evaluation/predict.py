"""Prediction: the classes of image files, by a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.data import images
from cnnbench.data.preprocess import fit
from cnnbench.runs import network
from cnnbench.runs.run import Run

BATCH = 32


def predict(run: Run, paths: Sequence[str | Path], *, top: int = 5) -> list[dict[str, Any]]:
    """Classifies image files of any common format and size.

    Args:
        run: a run with weights.
        paths: the files.
        top: how many classes to name for each.

    Returns:
        A row a file: "file", and "top", a list of {"class", "probability"} from the likeliest down.

    Raises:
        DataError: a file is missing or no image.
        RunError: the run has no weights.
    """
    about = run.data()
    size, stored = (about.input_shape[0], about.input_shape[1]), about.stored_channels
    pixels = [fit(images.read(Path(path), stored), run.recipe.data, size) for path in paths]
    net = network.restore(run)
    found = [
        net(np.stack(pixels[start : start + BATCH]))["probabilities"].numpy()
        for start in range(0, len(pixels), BATCH)
    ]
    rows = []
    for path, probabilities in zip(paths, np.concatenate(found), strict=True):
        order = np.argsort(-probabilities, kind="stable")[:top]
        likeliest = [
            {"class": net.classes[i], "probability": float(probabilities[i])} for i in order
        ]
        rows.append({"file": str(path), "top": likeliest})
    return rows
