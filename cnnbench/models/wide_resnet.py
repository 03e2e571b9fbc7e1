"""Wide ResNet: Zagoruyko & Komodakis 2016, "Wide Residual Networks", tables 1 and 8."""

from __future__ import annotations

from functools import partial
from typing import Any

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    activate,
    classifier,
    conv,
    drop,
    drop_path,
    norm,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.models.resnet import Bottlenecks, bottleneck_resnet, stages
from cnnbench.registry.limits import Rate

# Table 1: depth (6n + 4 layers in three stages of n blocks), and widening factor.
CIFAR = {"wide_resnet16_8": (16, 8), "wide_resnet28_10": (28, 10), "wide_resnet40_2": (40, 2)}
# Table 8: ResNet-50 with 3x3 convolutions twice as wide; the deeper variant is torchvision's.
IMAGENET = {
    "wide_resnet50_2": Bottlenecks((3, 4, 6, 3), width=128),
    "wide_resnet101_2": Bottlenecks((3, 4, 23, 3), width=128),
}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "wide_resnet16_8": (10_961_370, 1_548_145_664),
    "wide_resnet28_10": (36_479_194, 5_243_328_768),
    "wide_resnet40_2": (2_243_546, 327_599_360),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
}


def wide_resnet(
    name: str,
    depth: int,
    widen_factor: int,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    block_dropout: Rate = 0.0,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """Shallow and wide pre-activation ResNet for 32x32 images.

    `block_dropout` is the paper's dropout, between the two convolutions of a block; the paper uses
    0.3 on CIFAR, where at all. `dropout` is before the logits, where the paper has none.
    """
    block = partial(wide_block, activation=activation, dropout=block_dropout)
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, 16, 3, "stem_conv")
    x = stages(x, 3 * ((depth - 4) // 6,), 16 * widen_factor, block, drop_path_rate)
    x = activate(norm(x, "head_norm"), activation, "head_act")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def wide_block(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    drop_rate: float,
    *,
    activation: Activation,
    dropout: float,
) -> Any:
    """Two 3x3 convolutions, each after a batch norm and an activation (figure 1, d)."""
    active = activate(norm(x, f"{name}_norm1"), activation, f"{name}_act1")
    if x.shape[-1] != filters:
        x = conv(active, filters, 1, f"{name}_shortcut", strides=strides)
    residual = conv(active, filters, 3, f"{name}_conv1", strides=strides)
    residual = activate(norm(residual, f"{name}_norm2"), activation, f"{name}_act2")
    residual = drop(residual, dropout, f"{name}_dropout")
    residual = drop_path(
        conv(residual, filters, 3, f"{name}_conv2"), drop_rate, f"{name}_drop_path"
    )
    return keras.layers.Add(name=f"{name}_add")([x, residual])


for _name, (_depth, _widen_factor) in CIFAR.items():
    add_model(
        _name,
        partial(wide_resnet, _name, _depth, _widen_factor),
        COUNTS[_name],
        family="wide_resnet",
        source="Zagoruyko & Komodakis 2016, table 1",
        native=(32, 32, 3),
        classes=10,
        min_size=4,
    )
for _name, _net in IMAGENET.items():
    add_model(
        _name,
        partial(bottleneck_resnet, _name, _net),
        COUNTS[_name],
        family="wide_resnet",
        source="Zagoruyko & Komodakis 2016, table 8; torchvision",
        min_size=stem_min_size,
    )
