"""MobileNetV2: Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks", table 2."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    Layers,
    Padding,
    activate,
    classifier,
    make_divisible,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Positive, Rate, WidthMultiplier

# Table 2: expansion, filters, blocks, and stride of the first block; a stage is a row.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Table 4: width multipliers.
ALPHAS = {
    "mobilenet_v2_050": 0.5,
    "mobilenet_v2_075": 0.75,
    "mobilenet_v2": 1.0,
    "mobilenet_v2_140": 1.4,
}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "mobilenet_v2_050": (1_968_680, 97_131_840),
    "mobilenet_v2_075": (2_636_424, 209_069_792),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mobilenet_v2_140": (6_108_776, 582_195_824),
}


def mobilenet_v2(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    alpha: WidthMultiplier = 1.0,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    activation: Activation = "relu6",
    dropout: Rate = 0.2,
    padding: Padding = "same",
    epsilon: Positive = 1e-3,
) -> keras.Model:
    """MobileNetV2: inverted residuals with linear bottlenecks.

    `alpha` multiplies every width, except that of the last convolution if it is below 1 (section
    4). `stem: cifar` removes the stride of the first convolution and of stage 2, for 32x32 images.
    The dropout and the momentum of batch norm are those of the authors' code.

    `padding` of strided convolutions is "same", as in TensorFlow, or "symmetric", as in PyTorch.
    `epsilon` is that of batch norm: 1e-3 in the authors' code, 1e-5 in most PyTorch networks.
    """
    layers = Layers.of(padding, epsilon, momentum=0.997)
    conv, norm = layers.conv, layers.norm
    x = inputs = keras.Input(input_shape, name="images")
    strides = 2 if stem == "imagenet" else 1
    x = conv(x, make_divisible(32 * alpha), 3, "stem_conv", strides=strides)
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    for stage, (expand_ratio, filters, depth, strides) in enumerate(STAGES, start=1):
        if stage == 2 and stem == "cifar":
            strides = 1
        for i in range(1, depth + 1):
            x = inverted_residual(
                x,
                make_divisible(filters * alpha),
                expand_ratio,
                strides if i == 1 else 1,
                activation,
                f"stage{stage}_block{i}",
                layers,
            )
    x = conv(x, make_divisible(1280 * max(1, alpha)), 1, "head_conv")
    x = activate(norm(x, "head_norm"), activation, "head_act")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def inverted_residual(
    x: Any,
    filters: int,
    expand_ratio: int,
    strides: int,
    activation: Activation,
    name: str,
    layers: Layers,
) -> Any:
    """1x1 expansion, 3x3 depthwise convolution and linear 1x1 projection (table 1)."""
    conv, depthwise, norm = layers
    residual = x
    if expand_ratio > 1:
        residual = conv(residual, expand_ratio * x.shape[-1], 1, f"{name}_expand")
        residual = activate(norm(residual, f"{name}_expand_norm"), activation, f"{name}_expand_act")
    residual = depthwise(residual, 3, f"{name}_depthwise", strides=strides)
    residual = norm(residual, f"{name}_depthwise_norm")
    residual = activate(residual, activation, f"{name}_depthwise_act")
    residual = norm(conv(residual, filters, 1, f"{name}_project"), f"{name}_project_norm")
    if strides == 1 and x.shape[-1] == filters:
        return keras.layers.Add(name=f"{name}_add")([x, residual])
    return residual


for _name, _alpha in ALPHAS.items():
    add_model(
        _name,
        partial(mobilenet_v2, _name, alpha=_alpha),
        COUNTS[_name],
        family="mobilenet_v2",
        source="Sandler et al. 2018, table 2",
        min_size=stem_min_size,
    )
