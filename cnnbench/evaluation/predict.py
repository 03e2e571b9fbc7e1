"""Predictions of a trained network for image files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, cast

import numpy as np

from cnnbench.backend import session
from cnnbench.data import images, survey
from cnnbench.data.preprocess import fit, reading
from cnnbench.errors import DataError, UsageError
from cnnbench.runs import network
from cnnbench.runs.run import Run
from cnnbench.system import pipes
from cnnbench.tasks.results import TaskPrediction

BATCH = 32


class Prediction(TaskPrediction):
    """What a run predicts for an image file, with the keys of its task.

    Attributes:
        file: the path as given.
        error: instead of a prediction, why there is none: the file is missing or no image, or the
            run has seen none whose values have that range.
    """

    file: str
    error: NotRequired[str]


@session.isolated()
def predict(run: Run, paths: Sequence[str | Path], *, top: int = 5) -> list[Prediction]:
    """Predicts image files of any common format and size.

    Args:
        run: a run with weights.
        paths: the image files.
        top: maximum number of results, such as classes, for each file.

    Returns:
        One row per file, in the order given.

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
                image = _decoded(Path(path), about.pixels, options)
                read[place] = fit(image, run.recipe.data, size)
            except (DataError, UsageError) as error:
                found[place]["error"] = str(error)
        if read:
            outputs = net(np.stack(list(read.values())))
            outputs = {name: each.numpy() for name, each in outputs.items()}
            predictions = net.task.predictions(outputs, net.classes, top)
            for place, row in zip(read, predictions, strict=True):
                found[place] |= row
        rows += found
    return cast("list[Prediction]", rows)  # with whatever keys the task gives them


def _decoded(path: Path, seen: Mapping[str, int], options: Mapping[str, Any]) -> np.ndarray:
    """Returns the image in a file or a pipe.

    Args:
        path: of the file.
        seen: the kinds of pixels of the training data.
        options: see `reading`.

    Raises:
        DataError, UsageError: it cannot be read, or what is black and white is not known.
    """
    try:
        data = pipes.content(path)
    except OSError as error:
        raise DataError(f"cannot read the image: {error.strerror}", where=str(path)) from None
    survey.must_be_known(path, seen, options["value_range"], data)
    return (
        images.read(path, **options)
        if data is None
        else images.decode(data, name=str(path), **options)
    )
