"""The network that training starts from, and the runs that a recipe refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from cnnbench.training.compression import Shape, apply_last_stage, teacher_name


@dataclass(frozen=True)
class StartingPoint:
    """The network before the first training step.

    weights: the weights that are not random, by path.
    architecture: the records of the compression stages that changed the recipe's model.
    """

    weights: Mapping[str, np.ndarray]
    architecture: Sequence[Record]


def referenced_runs(recipe: Recipe, start: Run | None = None) -> dict[str, Run]:
    """Returns the runs that a recipe refers to: "init", which it starts from, and "teacher".

    Args:
        recipe: the recipe to train.
        start: the run of the previous compression stage, which replaces `init` of the recipe. If
            both name the same teacher, the run that `start` used is kept.

    Raises:
        UsageError: a run does not exist.
        RunError: a run is damaged.
    """
    found = {}
    if start is not None:
        found["init"] = start
    elif recipe.init is not None:
        found["init"] = find_run(recipe.init.run)
    name = teacher_name(recipe)
    if name and name not in presets.PRESETS:
        earlier = {}
        # By now the name of a recipe may refer to a newer run.
        if start is not None and teacher_name(start.recipe) == name:
            earlier = start.others("teacher")
        found["teacher"] = earlier.get("teacher") or find_run(name)
    return found


def starting_point(recipe: Recipe, data: Dataset, shape: Shape, start: Run | None) -> StartingPoint:
    """Returns the network that the last compression stage of a recipe starts from.

    Args:
        recipe: the recipe to train.
        data: the data set to train on.
        shape: (height, width, channels) of the network's input.
        start: the run to start from, if any.

    Raises:
        UsageError: `start` has a different network, classes or images, the published weights do
            not fit the network, or the compression stage does not support it.
        RunError: `start` has no weights, or they are damaged.
    """
    is_random = start is None and recipe.model.weights is None
    if is_random and not recipe.compress:
        return StartingPoint({}, [])
    records: list[Record] = []
    if start is not None:
        _check_start(start, recipe, data, shape)
        model, records = network.model_of(start), start.architecture()
    else:
        head_size = recipe.task.head_size(data.classes)
        model = build_model(recipe.model, shape, head_size, auxiliary=True)
        with recipe.located():
            load.start_from(without_auxiliary(model), recipe.model)
    if recipe.compress:
        model, records = apply_last_stage(recipe, model, records)
    named = {} if is_random else {weight.path: weight.numpy() for weight in model.weights}
    return StartingPoint(named, records)


def _check_start(start: Run, recipe: Recipe, data: Dataset, shape: Shape) -> None:
    """Raises UsageError if `start` has a different network, classes or input images."""
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
                f"{what} of {start.path}: {theirs}", key="init.run", allowed=f"must be {own}"
            )
