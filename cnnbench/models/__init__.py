"""Networks: one file a family; importing this package registers them all."""

from __future__ import annotations

from typing import Any

from cnnbench.errors import UsageError
from cnnbench.models import (
    alexnet,
    densenet,
    efficientnet,
    efficientnet_v2,
    lenet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    resnet_v2,
    resnext,
    vgg,
    wide_resnet,
)
from cnnbench.parts import MODELS, min_size
from cnnbench.registry import Spec

__all__ = [
    "alexnet",
    "build_model",
    "densenet",
    "efficientnet",
    "efficientnet_v2",
    "lenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "nasnet",
    "resnet",
    "resnet_v2",
    "resnext",
    "vgg",
    "wide_resnet",
]


def build_model(model: Spec | str, input_shape: tuple[int, int, int], classes: int) -> Any:
    """Builds a functional Keras model from normalised images to logits.

    Args:
        model: a recipe's `model`, or the name of one with its default options.
        input_shape: (height, width, channels) of the images.
        classes: how many logits the model has.

    Returns:
        A keras.Model: (batch, height, width, channels) float32 -> (batch, classes) float32 logits.

    Raises:
        UsageError: there is no such model, or it cannot take such images or classes.
    """
    spec = MODELS.spec(model) if isinstance(model, str) else model
    if classes < 2:
        raise UsageError(f"model {spec.name!r} with {classes} classes", allowed="at least 2")
    least = min_size(spec)
    if min(input_shape[:2]) < least:
        raise UsageError(
            f"model {spec.name!r} cannot take images of {input_shape[0]}x{input_shape[1]} pixels",
            allowed=f"at least {least}x{least}",
        )
    return MODELS.build(spec, tuple(input_shape), classes)
