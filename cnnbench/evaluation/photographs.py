"""A check of imported weights on labelled photographs, which needs no data set."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnbench.data.images import SUFFIXES
from cnnbench.errors import DataError, UsageError, VerificationError
from cnnbench.evaluation.predict import predict
from cnnbench.registry.kinds import DATASETS
from cnnbench.runs.run import Run
from cnnbench.system import files

# As many hits by guessing are less likely than this if the weights are right.
CHANCE = 0.01


def check_photographs(run: Run, folder: Path) -> dict[str, Any]:
    """Predicts the photographs in a folder, and writes the share of hits to check.json.

    The class of a photograph is the name of a folder above it, or the first part of its name before
    "_", either as a class name of the run or, for ImageNet, as its synset.

    Args:
        run: a run of classification with weights.
        folder: the folder; it is read with all folders below.

    Returns:
        "folder", "images" with a class, "unlabelled" and "unreadable" images, "top1" and "top5" of
        the first in [0, 1].

    Raises:
        UsageError: the run is of another task.
        DataError: there is no such folder, none of its images has a class, or those that have are
            too few to tell the network from guessing even if it hits all of them.
        VerificationError: the network is no better than guessing, so the weights, their
            preprocessing or the order of the classes is wrong.
    """
    if run.recipe.task.name != "classification":
        raise UsageError(f"photographs have no classes for {run.recipe.task.name}")
    classes = run.data().classes
    synsets: Mapping[str, str] = {}
    if "class_names" in (facts := DATASETS.get(run.recipe.data.name).facts):
        synsets = facts["class_names"]()
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder))
    found = _images_in(folder)
    labels = {path: label_of(path.relative_to(folder), classes, synsets) for path in found}
    labelled = {path: label for path, label in labels.items() if label is not None}
    if not labelled:
        raise DataError(
            f"none of {len(found)} images has a class of the network",
            where=str(folder),
            allowed="put them in folders named by class, or begin their names with it and _",
        )
    rows = predict(run, list(labelled), top=5)
    answers = [
        ([each["class"] for each in row["top"]], label)
        for row, label in zip(rows, labelled.values(), strict=True)
        if "error" not in row
    ]
    hits, count = sum(top[0] == label for top, label in answers), len(answers)
    if count < (least := fewest(len(classes))):
        raise DataError(
            f"{count} photographs that can be read and have a class are too few to tell from "
            "guessing",
            where=str(folder),
            allowed=f"must be at least {least} for {len(classes)} classes",
        )
    result = {
        "folder": str(folder.absolute()),
        "images": count,
        "unlabelled": len(found) - len(labelled),
        "unreadable": len(labelled) - count,
        "top1": hits / count,
        "top5": sum(label in top for top, label in answers) / count,
    }
    files.write_json(run.path / "check.json", result)
    if at_least_by_guessing(hits, count, len(classes)) > CHANCE:
        raise VerificationError(
            f"{hits} of {count} photographs are of the predicted class, as by guessing",
            where=str(run.path),
            allowed="check model.weights_source, the preprocessing and the order of the classes",
        )
    return result


def _images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder, without hidden ones, such as macOS's ._1.jpg."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def fewest(classes: int) -> int:
    """Returns how many hits are needed until guessing all of them is unlikely, see CHANCE."""
    return next(count for count in itertools.count(1) if classes**-count <= CHANCE)


def label_of(path: Path, classes: Sequence[str], synsets: Mapping[str, str]) -> str | None:
    """Returns the class of an image by its path below the folder; None if it names none."""
    known = {_plain(name): name for name in classes}
    known |= {synset: name for synset, name in synsets.items() if name in classes}
    words = [*reversed(path.parts[:-1]), path.stem.partition("_")[0], path.stem]
    return next((known[_plain(word)] for word in words if _plain(word) in known), None)


def at_least_by_guessing(hits: int, count: int, classes: int) -> float:
    """Returns the probability of at least so many hits if classes are guessed, binomial."""
    hit, miss = -math.log(classes), math.log1p(-1 / classes)

    def probability(n: int) -> float:
        ways = math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1)
        return math.exp(ways + n * hit + (count - n) * miss)

    return math.fsum(probability(n) for n in range(hits, count + 1))


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")
