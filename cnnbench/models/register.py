"""Registers networks, with what is known of each without building it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnbench.registry.kinds import MODELS


def add_model(
    name: str,
    build: Callable[..., Any],
    counts: tuple[int, int],
    *,
    family: str,
    source: str,
    min_size: int | Callable[[dict[str, Any]], int],
    native: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    from_images: Callable[[Any, Any], None] | None = None,
    task: str = "classification",
) -> None:
    """Registers a network with what is known of it without building it.

    Args:
        name: in recipes.
        build: from (input_shape, classes) and options to a model.
        counts: trainable weights, and multiply-accumulates of one native image.
        family: the name of its file.
        source: paper and table.
        min_size: the least height and width in pixels, or a function of the options that tells.
        native: (height, width, channels) of the images it was made for.
        classes: of the data set it was made for.
        from_images: sets the weights of a new network that come from normalised training images,
            (images, height, width, channels) float32.
        task: what it is made for.
    """
    params, macs = counts
    MODELS.add(
        name,
        build,
        family=family,
        source=source,
        params=params,
        macs=macs,
        native=native,
        native_classes=classes,
        min_size=min_size,
        from_images=from_images,
        task=task,
    )
