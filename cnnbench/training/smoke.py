"""Smoke runs: a recipe reduced to a few steps that take seconds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from cnnbench.data.open import Access, open_dataset
from cnnbench.errors import MissingDataError, RecipeError, UsageError
from cnnbench.recipe.recipe import MAX_NAME, Recipe
from cnnbench.recipe.sections import Init
from cnnbench.registry.kinds import DATASETS, CompressionSpec, DataSpec, excess, min_size
from cnnbench.registry.registry import Spec
from cnnbench.runs.find import find_run

BATCH, EXAMPLES, STEPS = 4, 24, 4
# Largest image size in pixels, unless the network needs larger images.
SIZE = 64
SUFFIX = ".smoke"


def smoke(recipe: Recipe, access: Access) -> tuple[Recipe, str]:
    """Returns the recipe reduced to a few steps on a few small images, and a note of the changes.

    If the data set is not available, synthetic images with its shape and classes are used instead;
    nothing is downloaded.
    """
    data, synthetic, shrunk = _shrunk(recipe), "", ""
    if data.image_size != recipe.data.image_size:
        shrunk = f" of {data.image_size} pixels, not {recipe.data.image_size}"
    try:
        with recipe.located():
            open_dataset(data, replace(access, download=False))
    except MissingDataError as error:
        synthetic = f"; {data.name} is not available: synthetic images ({error.what})"
        data = _synthetic(recipe, data)
    batch = min(data.batch_size, BATCH)
    data = data.model_copy(
        update={
            "batch_size": batch,
            "limit": EXAMPLES,
            "validation": 2 * batch if data.validation else 0,
        }
    )
    schedule = recipe.schedule
    if schedule.warmup_epochs:
        schedule = schedule.model_copy(update={"warmup_epochs": 0})
    # Linear scaling (Goyal et al. 2017). Precision is float32, because after so few steps batch
    # norm's statistics are too inaccurate for the range of float16.
    rate = recipe.optimizer.options()["lr"] * batch / recipe.data.batch_size
    optimizer = recipe.optimizer.model_copy(update={"lr": rate})
    # The first of the smaller image sizes for one epoch, then some steps at full size.
    most = data.image_size or SIZE
    sizes = [
        each.model_copy(update={"until": 1, "size": min(each.size, most)})
        for each in recipe.train.image_sizes[:1]
    ]
    steps = EXAMPLES // batch + STEPS if sizes else STEPS
    train = recipe.train.model_copy(
        update={
            "epochs": None,
            "examples": None,
            "steps": steps,
            "image_sizes": sizes,
            "early_stopping": None,
            "precision": "float32",
            "accumulate": math.gcd(recipe.train.accumulate, 2),
        }
    )
    init, compress, absent = _available_stages(recipe)
    update = {
        "augment": [_fitting(spec, data.image_size) for spec in recipe.augment],
        # A different name, because `init.run` and `teacher` find runs by the recipe's name.
        "name": f"{recipe.name[: MAX_NAME - len(SUFFIX)]}{SUFFIX}",
        "init": init,
        "compress": compress,
        "data": data,
        "optimizer": optimizer,
        "schedule": schedule,
        "train": train,
        "target": None,
    }
    size = f"{steps} steps of {batch} images{shrunk}, {EXAMPLES} examples per split"
    return recipe.model_copy(update=update), f"smoke run: {size}{synthetic}{absent}"


def _fitting(augmentation: Spec, size: int | None) -> Spec:
    """Returns an augmentation with the option that is too large for the images reduced to fit."""
    found = excess(augmentation, (size, size)) if size else None
    if found is None:
        return augmentation
    option, most = found
    return augmentation.model_copy(update={option: most})


def _available_stages(recipe: Recipe) -> tuple[Init | None, list[CompressionSpec], str]:
    """Returns `init` and `compress` without runs that are not available, and a note of those."""
    init, notes = recipe.init, ""
    if init is not None and not _is_available(init.run):
        notes = f"; init.run {init.run} is not available: random weights"
        init = None
    kept = []
    for spec in recipe.compress:
        teacher = spec.options().get("teacher")
        if teacher is None or _is_available(teacher):
            kept.append(spec.model_copy(update={"epochs": None}))
        else:
            notes += f"; teacher {teacher} is not available: {spec.name} is left out"
    return init, kept, notes


def _is_available(name: str) -> bool:
    try:
        find_run(name)
    except RecipeError:  # the run exists, but its recipe is invalid
        raise
    except UsageError:
        return False
    return True


def _shrunk(recipe: Recipe) -> DataSpec:
    """Returns the recipe's data with images of at most SIZE pixels, if the network allows it."""
    data, size = recipe.data, max(SIZE, min_size(recipe.model))
    if data.image_size is None or data.image_size <= size:
        return data
    short = data.resize_short and round(data.resize_short * size / data.image_size)
    return data.model_copy(update={"image_size": size, "resize_short": short})


def _synthetic(recipe: Recipe, data: DataSpec) -> Any:
    """Returns synthetic data with the same options as the recipe's data."""
    height, width, channels = DATASETS.get(data.name).facts.get("shape", (None, None, 3))
    size = data.image_size or SIZE
    common = data.model_dump(include=set(DataSpec.model_fields) - {"name", "classes"})
    return recipe.task.stand_in_data(
        data,
        None,
        **common,
        examples=EXAMPLES,
        shape=[height or size, width or size, channels],
    )
