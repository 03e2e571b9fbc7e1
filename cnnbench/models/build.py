"""Building of registered networks, and access to their stages and feature maps."""

from __future__ import annotations

import math
import re
from typing import Any

from cnnbench.backend.lazy import keras
from cnnbench.errors import UsageError
from cnnbench.registry.kinds import MODELS, ModelSpec, min_size
from cnnbench.registry.registry import Spec
from cnnbench.tasks.task import task_of


def build_model(
    model: Spec | str, input_shape: tuple[int, int, int], classes: int, *, auxiliary: bool = False
) -> Any:
    """Builds a functional Keras model that maps normalized images to logits.

    Args:
        model: a recipe's `model`, or a model name for the default options.
        input_shape: (height, width, channels) of the images.
        classes: number of logits.
        auxiliary: whether to keep the output of an auxiliary classifier, which is only used in
            training, as a second output.

    Returns:
        A keras.Model: (batch, height, width, channels) float32 -> (batch, classes) float32 logits.

    Raises:
        UsageError: the model is unknown or does not support the image size or number of classes.

    Example:
        >>> import cnnbench
        >>> model = cnnbench.build_model("lenet5", (32, 32, 1), 10)
        >>> model.output_shape
        (None, 10)
    """
    spec = MODELS.spec(model) if isinstance(model, str) else model
    task_of(spec).check_head_size(spec.name, classes)
    least = min_size(spec)
    if min(input_shape[:2]) < least:
        raise UsageError(
            f"model {spec.name!r} cannot take images of {input_shape[0]}x{input_shape[1]} pixels",
            allowed=f"at least {least}x{least}",
        )
    built = MODELS.build(spec, tuple(input_shape), classes)
    return built if auxiliary else without_auxiliary(built)


def without_auxiliary(model: Any) -> Any:
    """Returns a model with the same layers and the logits as its only output."""
    if len(model.outputs) == 1:
        return model
    return keras.Model(model.inputs, model.outputs[0], name=model.name)


def stage_of(path: str) -> str:
    """Returns the stage of a layer or weight path: stem, stage1, …, head or logits."""
    return path.partition("/")[0].partition("_")[0]


def feature_maps(model: Any) -> dict[str, Any]:
    """Returns the feature pyramid of a network, for detection and transfer.

    Args:
        model: a model from `build_model`.

    Returns:
        Symbolic outputs by name: Pk is the output of the last block whose height and width are
        those of the images divided by 2**k. `keras.Model(model.inputs, feature_maps(model))`
        computes them.
    """
    height = model.input_shape[1]
    ends = {}
    for layer in model.layers:
        if block := re.match(r"stage\d+(_block\d+)?(?=_)", layer.name):
            ends[block[0]] = layer.output
    return {f"P{round(math.log2(height / x.shape[1]))}": x for x in ends.values()}


def freeze(model: Any, spec: ModelSpec) -> None:
    """Freezes the layers selected by a recipe's `model.freeze`."""
    frozen = {
        None: (),
        "stem": ("stem_",),
        "stages": ("stem_", "stage"),
        "all_but_head": ("stem_", "stage", "head_"),
    }[spec.freeze]
    for layer in model.layers:
        if layer.name.startswith(frozen):
            layer.trainable = False


# Name prefix of the layers that predict a teacher's features from the student's.
HINT = "hint_"
