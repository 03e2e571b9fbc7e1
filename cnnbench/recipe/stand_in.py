"""Recipes with synthetic images, to measure speed without the data."""

from __future__ import annotations

from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import DATASETS, MODELS, input_shape


def shortened(recipe: Recipe) -> Recipe:
    """Returns the recipe with one batch of synthetic images of the same size, for one step."""
    facts = DATASETS.get(recipe.data.name).facts
    native = MODELS.get(recipe.model.name).facts["native"]
    stored = recipe.data.options().get("shape") or facts.get("shape") or native
    data = recipe.task.stand_in_data(
        recipe.data,
        recipe.model,
        batch_size=recipe.data.batch_size,
        examples=max(2, recipe.data.batch_size),
        shape=list(input_shape(recipe.data, stored)),
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
    # The extra cost of compression stages is not measured.
    update |= {"init": None, "compress": []}
    return recipe.model_copy(update=update)
