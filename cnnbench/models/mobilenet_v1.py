"""MobileNet: Howard et al. 2017, "MobileNets: Efficient CNNs for Mobile Vision", table 1."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import Activation, Layers, Padding, activate, classifier
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Positive, Rate, WidthMultiplier

# Table 1: filters, blocks, and stride of the first block; a stage is all blocks of one resolution.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
# Table 6: width multipliers.
ALPHAS = {
    "mobilenet_v1": 1.0,
    "mobilenet_v1_075": 0.75,
    "mobilenet_v1_050": 0.5,
    "mobilenet_v1_025": 0.25,
}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "mobilenet_v1": (4_231_976, 568_740_352),
    "mobilenet_v1_075": (2_585_560, 325_400_448),
    "mobilenet_v1_050": (1_331_592, 149_497_088),
    "mobilenet_v1_025": (470_072, 41_030_272),
}


def mobilenet_v1(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    alpha: WidthMultiplier = 1.0,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    activation: Activation = "relu6",
    dropout: Rate = 0.001,
    padding: Padding = "same",
    epsilon: Positive = 1e-3,
) -> keras.Model:
    """MobileNet: depthwise separable convolutions after a standard first one.

    `alpha` multiplies every width. `stem: cifar` removes the stride of the first convolution, for
    32x32 images. ReLU6 and dropout follow the authors' code; the paper does not have them. The
    paper's stride of 2 in the last block is a misprint, as its output is 7x7.

    `padding` of strided convolutions is "same", as in TensorFlow, or "symmetric", as in PyTorch.
    `epsilon` is that of batch norm: 1e-3 in the authors' code, 1e-5 in most PyTorch networks.
    """
    layers = Layers.of(padding, epsilon, momentum=0.99)
    conv, norm = layers.conv, layers.norm
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, int(32 * alpha), 3, "stem_conv", strides=2 if stem == "imagenet" else 1)
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    for stage, (filters, depth, strides) in enumerate(STAGES, start=1):
        for i in range(1, depth + 1):
            x = separable_block(
                x,
                int(filters * alpha),
                strides if i == 1 else 1,
                activation,
                f"stage{stage}_block{i}",
                layers,
            )
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def separable_block(
    x: Any, filters: int, strides: int, activation: Activation, name: str, layers: Layers
) -> Any:
    """3x3 depthwise and 1x1 convolution (figure 3, right)."""
    conv, depthwise, norm = layers
    x = depthwise(x, 3, f"{name}_depthwise", strides=strides)
    x = activate(norm(x, f"{name}_depthwise_norm"), activation, f"{name}_depthwise_act")
    x = conv(x, filters, 1, f"{name}_pointwise")
    return activate(norm(x, f"{name}_pointwise_norm"), activation, f"{name}_pointwise_act")


for _name, _alpha in ALPHAS.items():
    add_model(
        _name,
        partial(mobilenet_v1, _name, alpha=_alpha),
        COUNTS[_name],
        family="mobilenet_v1",
        source="Howard et al. 2017, table 1",
        min_size=lambda options: 32 if options["stem"] == "imagenet" else 16,
    )
