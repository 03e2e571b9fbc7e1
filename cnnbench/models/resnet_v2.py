"""ResNetV2: He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 4 (e)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    activate,
    classifier,
    conv,
    drop_path,
    stem_min_size,
)
from cnnbench.models.layers.blocks import norm as _norm
from cnnbench.models.register import add_model
from cnnbench.models.resnet import stages, stem_pool
from cnnbench.registry.limits import Rate

# Blocks in each stage, as in ResNet.
DEPTHS = {
    "resnet50v2": (3, 4, 6, 3),
    "resnet101v2": (3, 4, 23, 3),
    "resnet152v2": (3, 8, 36, 3),
}
# Table 4: 9n + 2 layers in three stages of n bottlenecks.
CIFAR = {f"resnet{9 * n + 2}v2": (n, n, n) for n in (18, 111)}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "resnet50v2": (25_568_360, 3_482_255_360),
    "resnet101v2": (44_577_896, 7_194_476_544),
    "resnet152v2": (60_236_904, 10_906_697_728),
    "resnet164v2": (1_703_258, 247_646_720),
    "resnet1001v2": (10_327_706, 1_490_995_712),
}

norm = partial(_norm, epsilon=1.001e-5)


def resnet_v2(
    name: str,
    depths: tuple[int, ...],
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNet with pre-activation bottlenecks, as in keras.applications.

    Deviations: the last block of a stage halves the size, not the first block of the next stage as
    in the paper, and convolutions have a bias unless a batch norm follows in the same block.
    `stem: cifar` is a 3x3 convolution without stride or pooling, for 32x32 images.
    """
    x = inputs = keras.Input(input_shape, name="images")
    if stem == "imagenet":
        x = stem_pool(conv(x, 64, 7, "stem_conv", strides=2, use_bias=True))
    else:
        x = conv(x, 64, 3, "stem_conv", use_bias=True)
    block = partial(preactivation_block, activation=activation, use_bias=True)
    count = 0
    for stage, depth in enumerate(depths, start=1):
        for i in range(1, depth + 1):
            strides = 2 if stage < len(depths) and i == depth else 1
            count += 1
            rate = drop_path_rate * count / sum(depths)
            x = block(x, 64 * 2 ** (stage - 1), strides, f"stage{stage}_block{i}", rate)
    x = activate(norm(x, "head_norm"), activation, "head_act")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def cifar_resnet_v2(
    name: str,
    depths: tuple[int, ...],
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNet with pre-activation bottlenecks for 32x32 images, without biases."""
    block = partial(preactivation_block, activation=activation, use_bias=False)
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, 16, 3, "stem_conv")
    x = stages(x, depths, 16, block, drop_path_rate)
    x = activate(norm(x, "head_norm"), activation, "head_act")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def preactivation_block(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    drop_rate: float,
    *,
    activation: Activation,
    use_bias: bool,
) -> Any:
    """1x1, 3x3 and 1x1 convolutions, each after a batch norm and an activation.

    `use_bias` applies to the convolutions that are not followed by a batch norm in the block.
    """
    active = activate(norm(x, f"{name}_norm1"), activation, f"{name}_act1")
    if x.shape[-1] != 4 * filters:
        shortcut = conv(
            active, 4 * filters, 1, f"{name}_shortcut", strides=strides, use_bias=use_bias
        )
    elif strides > 1:
        shortcut = keras.layers.MaxPooling2D(1, strides, name=f"{name}_shortcut_pool")(x)
    else:
        shortcut = x
    residual = conv(active, filters, 1, f"{name}_conv1")
    residual = activate(norm(residual, f"{name}_norm2"), activation, f"{name}_act2")
    residual = conv(residual, filters, 3, f"{name}_conv2", strides=strides)
    residual = activate(norm(residual, f"{name}_norm3"), activation, f"{name}_act3")
    residual = conv(residual, 4 * filters, 1, f"{name}_conv3", use_bias=use_bias)
    residual = drop_path(residual, drop_rate, f"{name}_drop_path")
    return keras.layers.Add(name=f"{name}_add")([shortcut, residual])


for _name, _depths in DEPTHS.items():
    add_model(
        _name,
        partial(resnet_v2, _name, _depths),
        COUNTS[_name],
        family="resnet_v2",
        source="He et al. 2016, figure 4 (e); keras.applications",
        min_size=stem_min_size,
    )
for _name, _cifar_depths in CIFAR.items():
    add_model(
        _name,
        partial(cifar_resnet_v2, _name, _cifar_depths),
        COUNTS[_name],
        family="resnet_v2",
        source="He et al. 2016, table 4",
        native=(32, 32, 3),
        classes=10,
        min_size=4,
    )
