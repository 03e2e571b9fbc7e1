"""Recipes on made-up images, for measuring speed and for smoke runs."""

from __future__ import annotations

from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import DATASETS, MODELS, input_shape


def shortened(recipe: Recipe) -> Recipe:
    """Returns the recipe on a few made-up images of the right size and number of classes."""
    facts = DATASETS.get(recipe.data.name).facts
    native = MODELS.get(recipe.model.name).facts
    stored = recipe.data.options().get("shape") or facts.get("shape") or native["native"]
    shape = input_shape(recipe.data, stored)
    data = DATASETS.spec(
        "synthetic",
        batch_size=recipe.data.batch_size,
        classes=facts.get("classes") or recipe.data.classes or native["native_classes"],
        examples=max(2, recipe.data.batch_size),
        shape=list(shape),
    )
    model = recipe.model.model_copy(update={"weights": None})
    train = recipe.train.model_copy(
        update={
            "epochs": None,
            "examples": None,
            "steps": 1,
            "early_stopping": None,
            "image_sizes": [],
        }
    )
    schedule = recipe.schedule.model_copy(update={"warmup_epochs": 0})
    update = {"data": data, "model": model, "train": train, "schedule": schedule, "augment": []}
    # What its stages of compression cost besides is not in the measure.
    update |= {"init": None, "compress": []}
    return recipe.model_copy(update=update)
