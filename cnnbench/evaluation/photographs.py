"""A check of imported weights on labelled photographs, which needs no data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from cnnbench.data.images import SUFFIXES
from cnnbench.errors import DataError
from cnnbench.evaluation.predict import predict
from cnnbench.registry.kinds import DATASETS
from cnnbench.runs.run import Run
from cnnbench.system import files
from cnnbench.tasks.results import TaskCheck


class PhotographResult(TaskCheck):
    """The content of check.json, with the keys of the run's task.

    Attributes:
        folder: absolute path of the photographs.
        images: number of images that could be read and have a label; the task's keys are of these.
        unlabelled: number of images whose path says nothing.
        unreadable: number of images with a label that could not be read.
    """

    folder: str
    images: int
    unlabelled: int
    unreadable: int


def check_photographs(run: Run, folder: Path) -> PhotographResult:
    """Predicts the photographs in a folder, and writes what the task makes of it to check.json.

    The path of a photograph says what it shows, as the task reads it; for ImageNet, that may be a
    synset.

    Args:
        run: a run with weights.
        folder: the folder; it is read with all folders below.

    Returns:
        The content of the file.

    Raises:
        UsageError: the run's task reads nothing from paths.
        DataError: there is no such folder, none of its images has a label, or those that have are
            too few to tell the network from guessing even if it hits all of them.
        VerificationError: the network is no better than guessing, so the weights, their
            preprocessing or the order of the classes is wrong.
    """
    others: Mapping[str, str] = {}
    if "class_names" in (facts := DATASETS.get(run.recipe.data.name).facts):
        others = facts["class_names"]()
    check = run.recipe.task.photograph_check(run.data().classes, others)
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder))
    found = _images_in(folder)
    labels = {path: check.label(path.relative_to(folder)) for path in found}
    labelled = {path: label for path, label in labels.items() if label is not None}
    if not labelled:
        raise DataError(
            f"none of {len(found)} images is labelled by its path",
            where=str(folder),
            allowed=check.naming,
        )
    rows = predict(run, list(labelled), top=check.top)
    pairs = zip(labelled.values(), rows, strict=True)
    answers = [(label, row) for label, row in pairs if "error" not in row]
    truth, predictions = [label for label, _ in answers], [row for _, row in answers]
    result: dict[str, Any] = {
        "folder": str(folder.absolute()),
        "images": len(answers),
        "unlabelled": len(found) - len(labelled),
        "unreadable": len(labelled) - len(answers),
    }
    result |= check.summary(truth, predictions, folder)
    files.write_json(run.path / "check.json", result)
    if refusal := check.refusal(truth, predictions, run.path):
        raise refusal
    return cast("PhotographResult", result)  # with whatever keys the task gives it


def _images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder, without hidden ones, such as macOS's ._1.jpg."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
