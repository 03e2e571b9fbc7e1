"""Compression during training: the next stage's network, its teacher and its masks."""

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
from cnnbench.runs import network
from cnnbench.runs.run import Run

if TYPE_CHECKING:
    from cnnbench.compression.distill import Lesson
    from cnnbench.compression.masking import Masking


Shape = tuple[int, int, int]


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
        model = build_model(preset.model, (*shape[:2], len(preset.mean)), head_size)
    load.load_published(model, preset.model, presets.download(name), whole=True)
    return Lesson(model, Preprocess("rgb", preset.mean, preset.std), stage, task)


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
    from cnnbench.compression.masking import Masking

    last, stage = architecture[-1], None
    if recipe.compress and last["stage"]["name"] == "prune":
        stage = build_stage(recipe.compress[-1])
    return Masking(model, averaged, stage, last.get("initial", 0.0), steps)


def _teacher_of(recipe: Recipe) -> str | None:
    """Returns what the last `distill` among the stages names, which holds for those after it."""
    names = [spec.options()["teacher"] for spec in recipe.compress if spec.name == "distill"]
    return names[-1] if names else None
