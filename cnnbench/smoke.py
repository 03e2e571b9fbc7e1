"""Smoke runs: any recipe, made so small that it takes seconds."""

from __future__ import annotations

from cnnbench.data.datasets import Access, open_dataset
from cnnbench.errors import MissingDataError
from cnnbench.parts import DATASETS, DataSpec
from cnnbench.recipe import Recipe

BATCH, EXAMPLES, STEPS = 8, 64, 6
MOCK_SIZE = 64


def smoke(recipe: Recipe, access: Access) -> tuple[Recipe, str]:
    """Returns the recipe cut down to a few steps on a few examples, and what was changed.

    Where the data set is not at hand, made-up images of its shape and classes stand in for it;
    nothing is ever downloaded.
    """
    data, mocked = recipe.data, ""
    try:
        open_dataset(data, Access(access.data_dir, download=False))
    except MissingDataError as error:
        data, mocked = _mock(recipe), f"; {data.name} is not at hand: made-up images ({error.what})"
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
    # Linear scaling (Goyal et al. 2017); and after so few steps the statistics of batch norm are
    # too poor for the range of float16.
    rate = recipe.optimizer.options()["lr"] * batch / recipe.data.batch_size
    optimizer = recipe.optimizer.model_copy(update={"lr": rate})
    train = recipe.train.model_copy(
        update={
            "epochs": None,
            "examples": None,
            "steps": STEPS,
            "early_stopping": None,
            "precision": "float32",
        }
    )
    update = {
        "data": data,
        "optimizer": optimizer,
        "schedule": schedule,
        "train": train,
        "target": None,
    }
    note = f"smoke run: {STEPS} steps of {batch} images, {EXAMPLES} examples a split{mocked}"
    return recipe.model_copy(update=update), note


def _mock(recipe: Recipe) -> DataSpec:
    facts = DATASETS.get(recipe.data.name).facts
    height, width, channels = facts.get("shape", (None, None, 3))
    size = recipe.data.image_size or MOCK_SIZE
    common = recipe.data.model_dump(include=set(DataSpec.model_fields) - {"name"})
    common["classes"] = facts.get("classes") or recipe.data.classes
    return DATASETS.spec(  # type: ignore[return-value]  # its base is DataSpec
        "synthetic", **common, examples=EXAMPLES, shape=[height or size, width or size, channels]
    )
