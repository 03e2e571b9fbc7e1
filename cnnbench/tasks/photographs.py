"""Checks of a network on photographs whose paths say what they show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cnnbench.errors import DataError, VerificationError

# As many hits by guessing are less likely than this if the weights are right.
CHANCE = 0.01


class PhotographCheck:
    """What a task reads from the paths of photographs, and how it judges their predictions.

    Attributes:
        naming: how a user has to name photographs.
        top: the maximum number of results per image that it needs of `Task.predictions`.
    """

    naming: ClassVar[str]
    top: ClassVar[int] = 1

    def label(self, path: Path) -> Any | None:
        """Returns what a photograph shows by its path below the folder; None if it says nothing."""
        raise NotImplementedError

    def summary(
        self, labels: Sequence[Any], predictions: Sequence[Mapping[str, Any]], folder: Path
    ) -> dict[str, Any]:
        """Returns the task's entries of check.json.

        Args:
            labels: the label of each photograph.
            predictions: their `Task.predictions`.
            folder: where the photographs are, for the error.

        Raises:
            DataError: they are too few to tell the network from guessing.
        """
        raise NotImplementedError

    def refusal(
        self, labels: Sequence[Any], predictions: Sequence[Mapping[str, Any]], run: Path
    ) -> VerificationError | None:
        """Returns the error if the network is no better than guessing, else None.

        Args:
            labels: the label of each photograph.
            predictions: their `Task.predictions`.
            run: folder of the run, for the error.
        """
        raise NotImplementedError


class ClassCheck(PhotographCheck):
    """Top-1 and top-5 of classes that folders or names begin with.

    The class of a photograph is the name of a folder above it, or the first part of its name before
    "_".

    Args:
        classes: names of the classes.
        others: other names, such as synsets, and the class of each.
    """

    naming = "put them in folders named by class, or begin their names with it and _"
    top = 5

    def __init__(self, classes: Sequence[str], others: Mapping[str, str]):
        self._count = len(classes)
        self._known = {_plain(name): name for name in classes}
        self._known |= {other: name for other, name in others.items() if name in set(classes)}

    def label(self, path: Path) -> str | None:
        """Returns the class of an image by its path below the folder; None if it names none."""
        words = [*reversed(path.parts[:-1]), path.stem.partition("_")[0], path.stem]
        plain = map(_plain, words)
        return next((self._known[word] for word in plain if word in self._known), None)

    def summary(
        self, labels: Sequence[Any], predictions: Sequence[Mapping[str, Any]], folder: Path
    ) -> dict[str, Any]:
        """Returns "top1" and "top5", shares of the photographs in [0, 1]."""
        count = len(labels)
        if count < (least := fewest(self._count)):
            raise DataError(
                f"{count} photographs that can be read and have a class are too few to tell from "
                "guessing",
                where=str(folder),
                allowed=f"must be at least {least} for {self._count} classes",
            )
        return {f"top{k}": _hits(labels, predictions, k) / count for k in (1, 5)}

    def refusal(
        self, labels: Sequence[Any], predictions: Sequence[Mapping[str, Any]], run: Path
    ) -> VerificationError | None:
        """Returns the error if as many hits by guessing are likelier than CHANCE."""
        hits, count = _hits(labels, predictions, 1), len(labels)
        if at_least_by_guessing(hits, count, self._count) <= CHANCE:
            return None
        return VerificationError(
            f"{hits} of {count} photographs are of the predicted class, as by guessing",
            where=str(run),
            allowed="check model.weights_source, the preprocessing and the order of the classes",
        )


def fewest(classes: int) -> int:
    """Returns how many hits are needed until guessing all of them is unlikely, see CHANCE."""
    return next(count for count in itertools.count(1) if classes**-count <= CHANCE)


def at_least_by_guessing(hits: int, count: int, classes: int) -> float:
    """Returns the probability of at least so many hits if classes are guessed, binomial."""
    hit, miss = -math.log(classes), math.log1p(-1 / classes)

    def probability(n: int) -> float:
        ways = math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1)
        return math.exp(ways + n * hit + (count - n) * miss)

    return math.fsum(probability(n) for n in range(hits, count + 1))


def _hits(labels: Sequence[Any], predictions: Sequence[Mapping[str, Any]], k: int) -> int:
    """Returns how many labels are among the k most likely classes."""
    return sum(
        label in [each["class"] for each in row["top"][:k]]
        for label, row in zip(labels, predictions, strict=True)
    )


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")
