"""EfficientNet: Tan & Le 2019, "Rethinking Model Scaling for Convolutional Neural Networks".

The Lite variants (same authors, 2020) are designed for integer arithmetic: no squeeze-and-excite,
ReLU6, a stem and a head of fixed width, and first and last stages of fixed depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    Layers,
    Padding,
    activate,
    classifier,
    drop_path,
    make_divisible,
    squeeze_excite,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Positive, Rate


class Stage(NamedTuple):
    """A row of the papers' tables: `depth` blocks, the first of which has the strides."""

    expand_ratio: int
    kernel: int
    strides: int
    filters: int
    depth: int
    fused: bool = False


# Table 1, stages 2 to 8.
B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
STEM_FILTERS, HEAD_FILTERS = 32, 1280
# Equation 3, with the values of the authors' code: width, depth, resolution in pixels, dropout.
SCALES = {
    "efficientnet_b0": (1.0, 1.0, 224, 0.2),
    "efficientnet_b1": (1.0, 1.1, 240, 0.2),
    "efficientnet_b2": (1.1, 1.2, 260, 0.3),
    "efficientnet_b3": (1.2, 1.4, 300, 0.3),
    "efficientnet_b4": (1.4, 1.8, 380, 0.4),
    "efficientnet_b5": (1.6, 2.2, 456, 0.4),
    "efficientnet_b6": (1.8, 2.6, 528, 0.5),
    "efficientnet_b7": (2.0, 3.1, 600, 0.5),
    "efficientnet_lite0": (1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": (1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": (1.1, 1.2, 260, 0.3),
    "efficientnet_lite3": (1.2, 1.4, 280, 0.3),
    "efficientnet_lite4": (1.4, 1.8, 300, 0.3),
}
LITE = tuple(name for name in SCALES if "lite" in name)
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "efficientnet_b0": (5_288_548, 385_814_752),
    "efficientnet_b1": (7_794_184, 686_802_832),
    "efficientnet_b2": (9_109_994, 993_561_872),
    "efficientnet_b3": (12_233_232, 1_827_141_392),
    "efficientnet_b4": (19_341_616, 4_393_771_024),
    "efficientnet_b5": (30_389_784, 10_266_384_752),
    "efficientnet_b6": (43_040_704, 19_067_593_536),
    "efficientnet_b7": (66_347_960, 37_745_884_192),
    "efficientnet_lite0": (4_652_008, 385_187_552),
    "efficientnet_lite1": (5_416_680, 600_185_232),
    "efficientnet_lite2": (6_092_072, 859_736_272),
    "efficientnet_lite3": (8_197_096, 1_383_321_872),
    "efficientnet_lite4": (13_006_568, 2_553_034_336),
}

Stem = Literal["imagenet", "cifar"]


def efficientnet(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Stem = "imagenet",
    activation: Activation = "swish",
    dropout: Rate = 0.2,
    drop_path_rate: Rate = 0.2,
    padding: Padding = "same",
    epsilon: Positive = 1e-3,
) -> keras.Model:
    """EfficientNet: the searched network B0, scaled in width and depth.

    The drop path rate grows linearly from 0 in the first of n blocks to (n - 1) / n of
    `drop_path_rate` in the last. `stem: cifar` removes the stride of the first convolution and of
    stage 2, for 32x32 images.

    `padding` of strided convolutions is "same", as in TensorFlow, or "symmetric", as in PyTorch.
    `epsilon` is that of batch norm: 1e-3 in the authors' code, 1e-5 in most PyTorch networks.
    """
    stages, stem_filters, head_filters = scaled(name)
    layers = Layers.of(padding, epsilon, momentum=0.99)
    conv, norm = layers.conv, layers.norm
    block = partial(
        mbconv, layers=layers, activation=activation, se_ratio=0 if name in LITE else 0.25
    )
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, stem_filters, 3, "stem_conv", strides=2 if stem == "imagenet" else 1)
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    x = stack(x, stages, block, stem, drop_path_rate)
    x = conv(x, head_filters, 1, "head_conv")
    x = activate(norm(x, "head_norm"), activation, "head_act")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def scaled(name: str) -> tuple[list[Stage], int, int]:
    """Returns the scaled stages of B0, and the filters of its stem and head."""
    width, depth, *_ = SCALES[name]
    stages = [stage._replace(filters=make_divisible(width * stage.filters)) for stage in B0]
    scales = slice(1, -1) if name in LITE else slice(None)
    stages[scales] = [s._replace(depth=math.ceil(depth * s.depth)) for s in stages[scales]]
    if name in LITE:
        return stages, STEM_FILTERS, HEAD_FILTERS
    return stages, make_divisible(width * STEM_FILTERS), make_divisible(width * HEAD_FILTERS)


def stack(
    x: Any, stages: Sequence[Stage], block: Callable[..., Any], stem: Stem, drop_path_rate: float
) -> Any:
    """Stacks the blocks of all stages; the drop path rate grows linearly from block to block."""
    index, blocks = 0, sum(stage.depth for stage in stages)
    for number, stage in enumerate(stages, start=1):
        keeps_size = number == 2 and stem == "cifar"
        for i in range(1, stage.depth + 1):
            strides = stage.strides if i == 1 and not keeps_size else 1
            rate = drop_path_rate * index / blocks
            x = block(x, stage, strides, rate, f"stage{number}_block{i}")
            index += 1
    return x


def mbconv(
    x: Any,
    stage: Stage,
    strides: int,
    drop_rate: float,
    name: str,
    *,
    layers: Layers,
    activation: Activation,
    se_ratio: float = 0.25,
) -> Any:
    """1x1 expansion, depthwise convolution, squeeze-and-excite and linear 1x1 projection.

    `se_ratio` is relative to the channels of the block's input, not to the expanded channels.
    """
    conv, depthwise, norm = layers
    residual = x
    if stage.expand_ratio > 1:
        residual = conv(residual, stage.expand_ratio * x.shape[-1], 1, f"{name}_expand")
        residual = activate(norm(residual, f"{name}_expand_norm"), activation, f"{name}_expand_act")
    residual = depthwise(residual, stage.kernel, f"{name}_depthwise", strides=strides)
    residual = norm(residual, f"{name}_depthwise_norm")
    residual = activate(residual, activation, f"{name}_depthwise_act")
    if se_ratio:
        squeezed = max(1, int(se_ratio * x.shape[-1]))
        residual = squeeze_excite(residual, squeezed, f"{name}_se", activation=activation)
    residual = norm(conv(residual, stage.filters, 1, f"{name}_project"), f"{name}_project_norm")
    return skip(x, residual, strides, drop_rate, name)


def skip(x: Any, residual: Any, strides: int, drop_rate: float, name: str) -> Any:
    """Adds the input of a block to its residual if their shapes are equal."""
    if strides > 1 or x.shape[-1] != residual.shape[-1]:
        return residual
    residual = drop_path(residual, drop_rate, f"{name}_drop")
    return keras.layers.Add(name=f"{name}_add")([x, residual])


for _name, (_, _, _size, _dropout) in SCALES.items():
    _build = partial(efficientnet, _name, dropout=_dropout)
    add_model(
        _name,
        partial(_build, activation="relu6") if _name in LITE else _build,
        COUNTS[_name],
        family="efficientnet",
        source="Tan & Le 2019, table 1 and equation 3",
        native=(_size, _size, 3),
        min_size=stem_min_size,
    )
