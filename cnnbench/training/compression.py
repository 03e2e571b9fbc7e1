"""Compression during training: the network of the next stage, its teacher and its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cnnbench.backend import session
from cnnbench.compression import Record, build_stage
from cnnbench.data.examples import Dataset
from cnnbench.data.preprocess import Preprocess
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model, without_auxiliary
from cnnbench.models.pretrained import load, presets
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import model_spec
from cnnbench.runs import network
from cnnbench.runs.run import Run

if TYPE_CHECKING:
    from cnnbench.compression.distill import Lesson
    from cnnbench.compression.masking import Masking


Shape = tuple[int, int, int]


def apply_last_stage(
    recipe: Recipe, model: Any, records: Sequence[Record]
) -> tuple[Any, list[Record]]:
    """Applies the last compression stage of a recipe to a network.

    Args:
        recipe: a recipe with at least one compression stage.
        model: the network that the stage starts from.
        records: the records of the stages before.

    Returns:
        The changed network, and the records with that of the last stage appended.

    Raises:
        UsageError: the stage does not support the network.
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
    """Returns the distillation from a teacher, or None if no compression stage names a teacher.

    Args:
        recipe: the recipe to train.
        data: the data set to train on.
        shape: (height, width, channels) of the network's input.
        teacher: the teacher's run; None: the teacher is a preset.

    Raises:
        UsageError: the teacher has other classes or takes other images.
    """
    name = teacher_name(recipe)
    if not name:
        return None
    from cnnbench.compression.distill import Lesson

    stage: Any = build_stage([spec for spec in recipe.compress if spec.name == "distill"][-1])
    if teacher is not None:
        net = network.teacher(teacher, data.classes, (*shape[:2], data.shape[2]))
        return Lesson(net.model, net.preprocess, stage, net.task)
    preset = presets.PRESETS[name]
    task = recipe.task
    if preset.classes != (head_size := task.head_size(data.classes)):
        what = f"the teacher {name} was trained on {preset.classes} other classes"
        raise UsageError(what, allowed=f"the {head_size} classes of the data")
    with session.precision("float32"):
        model = build_model(preset.model, (*shape[:2], len(preset.preprocessing.mean)), head_size)
    load.start_from(model, model_spec(preset.model, weights=name), whole=True)
    prepared = preset.preprocessing
    prepare = Preprocess(prepared.color, prepared.mean, prepared.std)
    return Lesson(model, prepare, stage, task)


def masking(
    recipe: Recipe, architecture: Sequence[Record], model: Any, averaged: Any, steps: int
) -> Masking | None:
    """Returns the masks of a network that this or an earlier stage prunes; None if none does.

    Args:
        recipe: the recipe to train.
        architecture: the records of the compression stages up to and including the last.
        model: the model to train.
        averaged: the model with the moving averages of the weights, if any.
        steps: training steps of the last stage.
    """
    pruned = [record["stage"]["name"] == "prune" for record in architecture]
    if not any(pruned):
        return None
    from cnnbench.compression.masking import Masking

    stage = None
    if recipe.compress and pruned[-1]:
        stage = build_stage(recipe.compress[-1])
    earlier = any(pruned if stage is None else pruned[:-1])
    initial = architecture[-1].get("initial", 0.0) if earlier else None
    return Masking(model, averaged, stage, initial, steps)


def teacher_name(recipe: Recipe) -> str | None:
    """Returns the teacher of the last `distill` stage; it also teaches the stages after it."""
    names = [spec.options()["teacher"] for spec in recipe.compress if spec.name == "distill"]
    return names[-1] if names else None
