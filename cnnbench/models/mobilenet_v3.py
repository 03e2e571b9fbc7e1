"""MobileNetV3: Howard et al. 2019, "Searching for MobileNetV3", tables 1 and 2."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any, Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    Layers,
    Padding,
    activate,
    logits,
    make_divisible,
    squeeze_excite,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Positive, Rate, WidthMultiplier

# Kernel size, "exp size", "#out", squeeze-and-excite, hard-swish or ReLU ("NL"), stride.
LARGE = (  # table 1
    (3, 16, 16, False, "RE", 1),
    (3, 64, 24, False, "RE", 2),
    (3, 72, 24, False, "RE", 1),
    (5, 72, 40, True, "RE", 2),
    (5, 120, 40, True, "RE", 1),
    (5, 120, 40, True, "RE", 1),
    (3, 240, 80, False, "HS", 2),
    (3, 200, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 480, 112, True, "HS", 1),
    (3, 672, 112, True, "HS", 1),
    (5, 672, 160, True, "HS", 2),
    (5, 960, 160, True, "HS", 1),
    (5, 960, 160, True, "HS", 1),
)
SMALL = (  # table 2
    (3, 16, 16, True, "RE", 2),
    (3, 72, 24, False, "RE", 2),
    (3, 88, 24, False, "RE", 1),
    (5, 96, 40, True, "HS", 2),
    (5, 240, 40, True, "HS", 1),
    (5, 240, 40, True, "HS", 1),
    (5, 120, 48, True, "HS", 1),
    (5, 144, 48, True, "HS", 1),
    (5, 288, 96, True, "HS", 2),
    (5, 576, 96, True, "HS", 1),
    (5, 576, 96, True, "HS", 1),
)
# Rows; the stage whose stride the CIFAR stem takes away; filters of the last hidden layer.
VARIANTS = {"mobilenet_v3_large": (LARGE, 2, 1280), "mobilenet_v3_small": (SMALL, 1, 1024)}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "mobilenet_v3_large": (5_483_032, 216_589_760),
    "mobilenet_v3_small": (2_542_856, 56_510_400),
}


def stages(name: str) -> list[list[tuple]]:
    """Returns the rows of a table grouped by stage: consecutive rows with equal "#out"."""
    rows, *_ = VARIANTS[name]
    return [list(stage) for _, stage in groupby(rows, key=lambda row: row[2])]


def mobilenet_v3(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    alpha: WidthMultiplier = 1.0,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    activation: Activation = "hard_swish",
    dropout: Rate = 0.2,
    padding: Padding = "same",
    epsilon: Positive = 1e-3,
) -> keras.Model:
    """MobileNetV3: inverted residuals, some with squeeze-and-excite.

    `alpha` multiplies every width, except that of the stem and, if it is below 1, that of the last
    hidden layer. `stem: cifar` removes the stride of the first convolution and of the first strided
    block, for 32x32 images. `activation` replaces hard-swish in the table, but not ReLU.

    `padding` of strided convolutions is "same", as in TensorFlow, or "symmetric", as in PyTorch.
    `epsilon` is that of batch norm: 1e-3 in the authors' code, 1e-5 in most PyTorch networks.
    """
    # The momentum is from section 6.1.1.
    layers = Layers.of(padding, epsilon, momentum=0.99)
    conv, norm = layers.conv, layers.norm
    _, cifar_stage, last_filters = VARIANTS[name]
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, 16, 3, "stem_conv", strides=2 if stem == "imagenet" else 1)
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    paper_filters = 16
    for stage, rows in enumerate(stages(name), start=1):
        for i, (kernel, expanded, filters, squeezed, nl, strides) in enumerate(rows, start=1):
            x = inverted_residual(
                x,
                kernel,
                # A width multiplier preserves the expansion ratio, not the expanded width.
                make_divisible(x.shape[-1] * expanded / paper_filters),
                make_divisible(filters * alpha),
                1 if stem == "cifar" and stage == cifar_stage else strides,
                squeezed,
                activation if nl == "HS" else "relu",
                f"stage{stage}_block{i}",
                layers,
            )
            paper_filters = filters
    x = conv(x, make_divisible(6 * x.shape[-1]), 1, "head_conv")
    x = activate(norm(x, "head_norm"), activation, "head_act")
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    x = keras.layers.Dense(make_divisible(last_filters * max(1, alpha)), name="head_dense")(x)
    x = activate(x, activation, "head_dense_act")
    return keras.Model(inputs, logits(x, classes, dropout), name=name)


def inverted_residual(
    x: Any,
    kernel: int,
    expanded: int,
    filters: int,
    strides: int,
    squeezed: bool,
    activation: Activation,
    name: str,
    layers: Layers,
) -> Any:
    """1x1 expansion, depthwise convolution, squeeze-and-excite and 1x1 projection (figure 4)."""
    conv, depthwise, norm = layers
    residual = x
    if expanded != x.shape[-1]:
        residual = conv(residual, expanded, 1, f"{name}_expand")
        residual = activate(norm(residual, f"{name}_expand_norm"), activation, f"{name}_expand_act")
    residual = depthwise(residual, kernel, f"{name}_depthwise", strides=strides)
    residual = norm(residual, f"{name}_depthwise_norm")
    residual = activate(residual, activation, f"{name}_depthwise_act")
    if squeezed:
        gates = make_divisible(expanded / 4)
        residual = squeeze_excite(residual, gates, f"{name}_se", gate="hard_sigmoid")
    residual = norm(conv(residual, filters, 1, f"{name}_project"), f"{name}_project_norm")
    if strides == 1 and x.shape[-1] == filters:
        return keras.layers.Add(name=f"{name}_add")([x, residual])
    return residual


for _name in VARIANTS:
    add_model(
        _name,
        partial(mobilenet_v3, _name),
        COUNTS[_name],
        family="mobilenet_v3",
        source=f"Howard et al. 2019, table {1 if _name.endswith('large') else 2}",
        min_size=stem_min_size,
    )
