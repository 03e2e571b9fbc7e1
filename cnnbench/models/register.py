"""Registration of networks, with the facts known about each without building it."""

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
    """Registers a network, with the facts known about it without building it.

    Args:
        name: name in recipes.
        build: function of (input_shape, classes) and options that returns a model.
        counts: trainable parameters, and multiply-accumulates for one image of the native size.
        family: name of the network's file.
        source: paper and table.
        min_size: smallest height and width in pixels, or a function of the options that returns it.
        native: (height, width, channels) of the images that the network was designed for.
        classes: number of classes that the network was designed for.
        from_images: initializes weights of a new model from normalized training images, (images,
            height, width, channels) float32.
        task: name of the network's task.
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
