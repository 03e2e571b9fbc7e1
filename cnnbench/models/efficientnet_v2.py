"""EfficientNetV2: Tan & Le 2021, "Smaller Models and Faster Training", table 4."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from cnnbench.backend.lazy import keras
from cnnbench.models.efficientnet import Stage, Stem, mbconv, skip, stack
from cnnbench.models.layers.blocks import (
    Activation,
    Layers,
    Padding,
    activate,
    classifier,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Positive, Rate

# B0 of the authors' code, which scales it to B1, B2 and B3 with EfficientNet's coefficients.
BASE = (
    Stage(1, 3, 1, 16, 1, fused=True),
    Stage(4, 3, 2, 32, 2, fused=True),
    Stage(4, 3, 2, 48, 2, fused=True),
    Stage(4, 3, 2, 96, 3),
    Stage(6, 3, 1, 112, 5),
    Stage(6, 3, 2, 192, 8),
)
# Table 4, stages 1 to 6.
S = (
    Stage(1, 3, 1, 24, 2, fused=True),
    Stage(4, 3, 2, 48, 4, fused=True),
    Stage(4, 3, 2, 64, 4, fused=True),
    Stage(4, 3, 2, 128, 6),
    Stage(6, 3, 1, 160, 9),
    Stage(6, 3, 2, 256, 15),
)
# Section 3.3: S scaled up, with the values of the authors' code.
M = (
    Stage(1, 3, 1, 24, 3, fused=True),
    Stage(4, 3, 2, 48, 5, fused=True),
    Stage(4, 3, 2, 80, 5, fused=True),
    Stage(4, 3, 2, 160, 7),
    Stage(6, 3, 1, 176, 14),
    Stage(6, 3, 2, 304, 18),
    Stage(6, 3, 1, 512, 5),
)
HEAD_FILTERS = 1280
# Stages, filters of the stem, width factor, depth factor, resolution in pixels, dropout.
VARIANTS = {
    "efficientnet_v2_b0": (BASE, 32, 1.0, 1.0, 224, 0.2),
    "efficientnet_v2_b1": (BASE, 32, 1.0, 1.1, 240, 0.2),
    "efficientnet_v2_b2": (BASE, 32, 1.1, 1.2, 260, 0.3),
    "efficientnet_v2_b3": (BASE, 32, 1.2, 1.4, 300, 0.3),
    "efficientnet_v2_s": (S, 24, 1.0, 1.0, 384, 0.2),
    "efficientnet_v2_m": (M, 24, 1.0, 1.0, 480, 0.3),
}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "efficientnet_v2_b0": (7_139_704, 718_086_176),
    "efficientnet_v2_b1": (8_141_052, 1_196_819_360),
    "efficientnet_v2_b2": (10_096_086, 1_697_542_832),
    "efficientnet_v2_b3": (14_358_406, 3_011_458_816),
    "efficientnet_v2_s": (21_458_488, 8_365_617_152),
    "efficientnet_v2_m": (54_139_356, 24_582_460_384),
}


def efficientnet_v2(
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
    """EfficientNetV2: early stages use full 3x3 convolutions instead of depthwise ones.

    `drop_path_rate`, `stem: cifar`, `padding` and `epsilon` are the same as for EfficientNet.
    """
    layers = Layers.of(padding, epsilon, momentum=0.9)
    conv, norm = layers.conv, layers.norm
    table, stem_filters, width, depth, *_ = VARIANTS[name]
    stages = [
        stage._replace(
            filters=round_filters(width * stage.filters), depth=math.ceil(depth * stage.depth)
        )
        for stage in table
    ]
    x = inputs = keras.Input(input_shape, name="images")
    strides = 2 if stem == "imagenet" else 1
    x = conv(x, round_filters(width * stem_filters), 3, "stem_conv", strides=strides)
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    build = partial(block, layers=layers, activation=activation)
    x = stack(x, stages, build, stem, drop_path_rate)
    x = conv(x, round_filters(width * HEAD_FILTERS), 1, "head_conv")
    x = activate(norm(x, "head_norm"), activation, "head_act")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def round_filters(filters: float) -> int:
    """Rounds to the nearest multiple of 8; unlike V1, this may lose more than 10 %."""
    return int(filters / 8 + 0.5) * 8


def block(x: Any, stage: Stage, *args: Any, **options: Any) -> Any:
    """Applies the block of a stage: Fused-MBConv or MBConv."""
    return (fused_mbconv if stage.fused else mbconv)(x, stage, *args, **options)


def fused_mbconv(
    x: Any,
    stage: Stage,
    strides: int,
    drop_rate: float,
    name: str,
    *,
    layers: Layers,
    activation: Activation,
) -> Any:
    """3x3 expansion and linear 1x1 projection, or one 3x3 without expansion (figure 2)."""
    conv, norm = layers.conv, layers.norm
    residual = x
    if stage.expand_ratio > 1:
        expanded = stage.expand_ratio * x.shape[-1]
        residual = conv(residual, expanded, stage.kernel, f"{name}_expand", strides=strides)
        residual = activate(norm(residual, f"{name}_expand_norm"), activation, f"{name}_expand_act")
        residual = norm(conv(residual, stage.filters, 1, f"{name}_project"), f"{name}_project_norm")
    else:
        residual = conv(residual, stage.filters, stage.kernel, f"{name}_project", strides=strides)
        residual = norm(residual, f"{name}_project_norm")
        residual = activate(residual, activation, f"{name}_project_act")
    return skip(x, residual, strides, drop_rate, name)


for _name, (*_, _size, _dropout) in VARIANTS.items():
    add_model(
        _name,
        partial(efficientnet_v2, _name, dropout=_dropout),
        COUNTS[_name],
        family="efficientnet_v2",
        source="Tan & Le 2021, table 4",
        native=(_size, _size, 3),
        min_size=stem_min_size,
    )
