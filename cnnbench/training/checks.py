"""Checks of a recipe that need the opened data set or the devices."""

from __future__ import annotations

from cnnbench.errors import UsageError
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import SCHEDULES


def check_durations(recipe: Recipe, steps_per_epoch: int, total_steps: int) -> None:
    """Raises if warm-up, or training on smaller images, lasts as long as the whole training.

    Raises:
        UsageError: the error names the key of the recipe.
    """
    if recipe.schedule.warmup_epochs * steps_per_epoch >= total_steps:
        raise UsageError(
            f"{recipe.schedule.warmup_epochs} epochs",
            key="schedule.warmup_epochs",
            allowed=f"must be shorter than the {total_steps} steps of training",
        )
    sizes = recipe.train.image_sizes
    if sizes and sizes[-1].until * steps_per_epoch >= total_steps:
        raise UsageError(
            f"until epoch {sizes[-1].until}",
            key=f"train.image_sizes.{len(sizes) - 1}.until",
            allowed=f"must end before the {total_steps} steps of training, the last of which use "
            "full-size images",
        )


def check_validation(recipe: Recipe, has_validation: bool) -> None:
    """Raises if the recipe needs a validation split and there is none.

    Raises:
        UsageError: the error names the key of the recipe.
    """
    plateau = SCHEDULES.get(recipe.schedule.name).facts.get("needs_validation")
    for key, needed in (
        ("train.early_stopping", recipe.train.early_stopping is not None),
        ("schedule.name", plateau),
    ):
        if needed and not has_validation:
            raise UsageError(
                "needs a validation split", key=key, allowed="set data.validation above 0"
            )


def check_replicas(recipe: Recipe, replicas: int) -> None:
    """Raises if a batch cannot be split evenly over replicas and accumulation parts.

    Raises:
        UsageError: the error names the key of the recipe.
    """
    parts = recipe.train.accumulate
    if recipe.data.batch_size % (replicas * parts):
        accumulation = f" times train.accumulate {parts}" if parts > 1 else ""
        raise UsageError(
            f"{recipe.data.batch_size}",
            key="data.batch_size",
            allowed=f"must be a multiple of {replicas} replicas{accumulation}",
        )
