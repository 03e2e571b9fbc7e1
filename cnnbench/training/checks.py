"""What can be wrong between a recipe and its data once the data set is open."""

from __future__ import annotations

from cnnbench.errors import UsageError
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import SCHEDULES


def check_durations(recipe: Recipe, steps_per_epoch: int, total_steps: int) -> None:
    """Refuses a warm-up, or smaller images, that take the whole training.

    Raises:
        UsageError: the message names the key.
    """
    if recipe.schedule.warmup_epochs * steps_per_epoch >= total_steps:
        raise UsageError(
            f"{recipe.schedule.warmup_epochs} epochs",
            key="schedule.warmup_epochs",
            allowed=f"less than the {total_steps} steps of the training",
        )
    sizes = recipe.train.image_sizes
    if sizes and sizes[-1].until * steps_per_epoch >= total_steps:
        raise UsageError(
            f"until epoch {sizes[-1].until}",
            key=f"train.image_sizes.{len(sizes) - 1}.until",
            allowed=f"less than the {total_steps} steps of the training, which ends with images of "
            "the whole size",
        )


def check_validation(recipe: Recipe, has_validation: bool) -> None:
    """Refuses what needs a validation split where there is none.

    Raises:
        UsageError: the message names the key.
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
    """Refuses a batch that cannot be split evenly over replicas and accumulated parts.

    Raises:
        UsageError: the message names the key.
    """
    parts = recipe.train.accumulate
    if recipe.data.batch_size % (replicas * parts):
        times = f" times train.accumulate of {parts}" if parts > 1 else ""
        raise UsageError(
            f"{recipe.data.batch_size}",
            key="data.batch_size",
            allowed=f"a multiple of the {replicas} replicas{times}",
        )
