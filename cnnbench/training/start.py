"""What a training begins with: weights, what its stage does to the network, a teacher, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnbench import network, presets, runtime, weights
from cnnbench.compress import Record, build_stage
from cnnbench.data.examples import Dataset
from cnnbench.data.pipeline import preprocess
from cnnbench.data.preprocess import Preprocess
from cnnbench.errors import UsageError
from cnnbench.models import build_model, without_auxiliary
from cnnbench.recipe import Recipe
from cnnbench.run import Run, find_run

if TYPE_CHECKING:
    from cnnbench.compress.distill import Lesson
    from cnnbench.compress.masking import Masking

Shape = tuple[int, int, int]


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
        model = build_model(recipe.model, shape, len(data.classes), auxiliary=True)
        weights.start_from(without_auxiliary(model), recipe.model)
    if recipe.compress:
        model, records = follow(recipe, model, records)
    named = {} if is_random else {weight.path: weight.numpy() for weight in model.weights}
    return Beginning(named, records)


def follow(recipe: Recipe, model: Any, records: Sequence[Record]) -> tuple[Any, list[Record]]:
    """Returns what the last stage of a recipe makes of a network, and its record after the others.

    Raises:
        UsageError: the stage cannot work on it.
    """
    spec = recipe.compress[-1]
    model, record = build_stage(spec).begin(without_auxiliary(model))
    return model, [*records, {"stage": spec.model_dump(), **record}]


def lesson(
    recipe: Recipe,
    data: Dataset,
    shape: Shape,
    teacher: Run | None,
) -> Lesson | None:
    """Returns what a network learns from a teacher, if a stage of the recipe names one.

    Args:
        recipe: what is going to be trained.
        data: that it is trained on.
        shape: of the images that the network sees.
        teacher: the teacher's run.

    Raises:
        UsageError: the teacher has other classes or takes other images.
    """
    if not (name := _teacher_of(recipe)):
        return None
    from cnnbench.compress.distill import Lesson

    stage: Any = build_stage([spec for spec in recipe.compress if spec.name == "distill"][-1])
    if teacher is not None:
        net = network.teacher(teacher, data.classes, (*shape[:2], data.shape[2]))
        return Lesson(net.model, net.preprocess, stage)
    preset = presets.PRESETS[name]
    if preset.classes != len(data.classes):
        what = f"the teacher {name} knows {preset.classes} other classes"
        raise UsageError(what, allowed=f"the {len(data.classes)} classes of the data")
    with runtime.precision("float32"):
        model = build_model(preset.model, (*shape[:2], len(preset.mean)), len(data.classes))
    weights.load_published(model, preset.model, presets.download(name), whole=True)
    return Lesson(model, Preprocess("rgb", preset.mean, preset.std), stage)


def masking(
    recipe: Recipe, architecture: Sequence[Record], model: Any, averaged: Any, steps: int
) -> Masking | None:
    """Returns the masks of a network that is pruned, or was by a stage before.

    Args:
        recipe: what is going to be trained.
        architecture: the records of the stages, the recipe's last one among them.
        model: that is trained.
        averaged: a model with the averages of its weights, or none.
        steps: that the stage trains.
    """
    if not any(record["stage"]["name"] == "prune" for record in architecture):
        return None
    from cnnbench.compress.masking import Masking

    last, stage = architecture[-1], None
    if recipe.compress and last["stage"]["name"] == "prune":
        stage = build_stage(recipe.compress[-1])
    return Masking(model, averaged, stage, last.get("initial", 0.0), steps)


def _teacher_of(recipe: Recipe) -> str | None:
    """Returns what the last `distill` among the stages names, which holds for those after it."""
    names = [spec.options()["teacher"] for spec in recipe.compress if spec.name == "distill"]
    return names[-1] if names else None


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
