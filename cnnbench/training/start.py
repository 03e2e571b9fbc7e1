"""What a training begins with: weights, what its stage does to the network, a teacher, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnbench.compression import Record
from cnnbench.data.examples import Dataset
from cnnbench.data.preprocess import preprocess
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model, without_auxiliary
from cnnbench.models.pretrained import load, presets
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs import network
from cnnbench.runs.find import find_run
from cnnbench.runs.run import Run
from cnnbench.training.compression import Shape, _teacher_of, follow

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Beginning:
    """A network before the first step.

    weights: those that are not random, by their paths.
    architecture: the records of the stages that made it of what the recipe names.
    """

    weights: Mapping[str, np.ndarray]
    architecture: Sequence[Record]


def runs(recipe: Recipe, start: Run | None = None) -> dict[str, Run]:
    """Returns the runs that a recipe refers to: the one it starts from, "init", and "teacher".

    Args:
        recipe: what is going to be trained.
        start: the run of the stage before, in place of what the recipe names; its teacher goes on
            where the recipe names no other.

    Raises:
        UsageError: there is no such run.
        RunError: one of them is damaged.
    """
    found = {}
    if start is not None:
        found["init"] = start
    elif recipe.init is not None:
        found["init"] = find_run(recipe.init.run)
    if (name := _teacher_of(recipe)) and name not in presets.PRESETS:
        # The name of a recipe may mean a newer run by now.
        is_kept = start is not None and _teacher_of(start.recipe) == name
        others = start.others("teacher") if start is not None and is_kept else {}
        found["teacher"] = others.get("teacher") or find_run(name)
    return found


def begin(recipe: Recipe, data: Dataset, shape: Shape, start: Run | None) -> Beginning:
    """Begins the last stage of a recipe.

    Args:
        recipe: what is going to be trained.
        data: that it is trained on.
        shape: of the images that the network sees.
        start: the run to start from, if there is one.

    Raises:
        UsageError: the run to start from has another network, other classes or other images, the
            published weights are not those of the network, or the stage cannot work on it.
        RunError: the run has no weights, or they are damaged.
    """
    is_random = start is None and recipe.model.weights is None
    if is_random and not recipe.compress:
        return Beginning({}, [])
    records: list[Record] = []
    if start is not None:
        _must_fit(start, recipe, data, shape)
        model, records = network.model_of(start), start.architecture()
    else:
        head_size = recipe.task.head_size(data.classes)
        model = build_model(recipe.model, shape, head_size, auxiliary=True)
        load.start_from(without_auxiliary(model), recipe.model)
    if recipe.compress:
        model, records = follow(recipe, model, records)
    named = {} if is_random else {weight.path: weight.numpy() for weight in model.weights}
    return Beginning(named, records)


def _must_fit(start: Run, recipe: Recipe, data: Dataset, shape: Shape) -> None:
    """Refuses a run to start from that has another network, other classes or sees other images."""
    about, prepare = start.data(), preprocess(data, recipe.data)
    for what, theirs, own in (
        ("network", start.recipe.model.name, recipe.model.name),
        ("network", start.recipe.model.options(), recipe.model.options()),
        ("classes", about.classes, list(data.classes)),
        ("images", tuple(about.input_shape), shape),
        ("data.color", about.color, prepare.color),
        ("data.mean", tuple(about.mean), prepare.mean),
        ("data.std", tuple(about.std), prepare.std),
    ):
        if theirs != own:
            raise UsageError(
                f"init.run: {what}: {theirs}", where=str(start.path), allowed=f"as here: {own}"
            )
