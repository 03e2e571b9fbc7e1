"""Builds registered networks, and tells their stages, feature maps and auxiliary outputs."""

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
    """Builds a functional Keras model from normalised images to logits.

    Args:
        model: a recipe's `model`, or the name of one with its default options.
        input_shape: (height, width, channels) of the images.
        classes: how many logits the model has.
        auxiliary: whether a classifier that serves training alone, if there is one, is a second
            output.

    Returns:
        A keras.Model: (batch, height, width, channels) float32 -> (batch, classes) float32 logits.

    Raises:
        UsageError: there is no such model, or it cannot take such images or classes.
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
    """Returns a model with the logits for its only output, made of the same layers."""
    if len(model.outputs) == 1:
        return model
    return keras.Model(model.inputs, model.outputs[0], name=model.name)


def stage_of(path: str) -> str:
    """Returns the stage of a layer or a weight by its path: stem, stage1, …, head or logits."""
    return path.partition("/")[0].partition("_")[0]


def feature_maps(model: Any) -> dict[str, Any]:
    """Returns the feature pyramid of a network, for detection and transfer.

    Args:
        model: from `build_model`.

    Returns:
        By the name Pk, the output (symbolic) of the last block whose height and width are those of
        the images over 2**k; `keras.Model(model.inputs, feature_maps(model))` computes them.
    """
    height = model.input_shape[1]
    ends = {}
    for layer in model.layers:
        if block := re.match(r"stage\d+(_block\d+)?(?=_)", layer.name):
            ends[block[0]] = layer.output
    return {f"P{round(math.log2(height / x.shape[1]))}": x for x in ends.values()}


def freeze(model: Any, spec: ModelSpec) -> None:
    """Keeps the layers still that a recipe names."""
    frozen = {
        None: (),
        "stem": ("stem_",),
        "stages": ("stem_", "stage"),
        "all_but_head": ("stem_", "stage", "head_"),
    }[spec.freeze]
    for layer in model.layers:
        if layer.name.startswith(frozen):
            layer.trainable = False


# How the names of layers begin that guess what a teacher sees.
HINT = "hint_"
