"""DenseNet: Huang et al. 2017, "Densely Connected Convolutional Networks", tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    activate,
    classifier,
    conv,
    drop,
    norm,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Rate

# Table 1: growth rate, and dense layers in each of the four stages. DenseNet-161 is from the
# authors' code and earlier arXiv versions of the table; the published table has DenseNet-264.
IMAGENET = {
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet161": (48, (6, 12, 36, 24)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
}
# Table 2: depth and growth rate. BC variants have bottlenecks and compression (section 3).
CIFAR = {"densenet_40_12": (40, 12)}
CIFAR_BC = {
    "densenet_bc_40_12": (40, 12),
    "densenet_bc_100_12": (100, 12),
    "densenet_bc_190_40": (190, 40),
    "densenet_bc_250_24": (250, 24),
}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "densenet121": (7_978_856, 2_834_161_664),
    "densenet161": (28_681_000, 7_727_907_072),
    "densenet169": (14_149_480, 3_359_843_328),
    "densenet201": (20_013_928, 4_291_365_888),
    "densenet_40_12": (1_019_722, 264_812_928),
    "densenet_bc_40_12": (176_122, 72_365_352),
    "densenet_bc_100_12": (769_162, 287_929_692),
    "densenet_bc_190_40": (25_624_430, 9_301_945_740),
    "densenet_bc_250_24": (15_324_406, 5_418_785_724),
}


def densenet(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    activation: Activation = "relu",
    dropout: Rate = 0.0,
    conv_dropout: Rate = 0.0,
) -> keras.Model:
    """DenseNet-BC for ImageNet.

    `stem: cifar` is a 3x3 convolution without stride or pooling, for 32x32 images. `conv_dropout`
    is the dropout rate after every convolution except the first; the paper uses it only on CIFAR.
    """
    growth_rate, depths = IMAGENET[name]
    x = inputs = keras.Input(input_shape, name="images")
    if stem == "imagenet":
        x = conv(x, 2 * growth_rate, 7, "stem_conv", strides=2)
        x = activate(norm(x, "stem_norm"), activation, "stem_act")
        x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    else:
        x = conv(x, 2 * growth_rate, 3, "stem_conv")
    x = dense_stages(x, depths, growth_rate, activation, conv_dropout, bc=True)
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def cifar_densenet(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
    conv_dropout: Rate = 0.0,
) -> keras.Model:
    """DenseNet for 32x32 images, with three stages of equal depth.

    `conv_dropout` is the dropout rate after every convolution except the first; the paper uses 0.2
    for training without augmentation, else 0.
    """
    bc = name in CIFAR_BC
    depth, growth_rate = CIFAR_BC[name] if bc else CIFAR[name]
    # The depth includes four other layers: the stem, two transitions and the logits.
    layers = (depth - 4) // (6 if bc else 3)
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, 2 * growth_rate if bc else 16, 3, "stem_conv")
    x = dense_stages(x, (layers,) * 3, growth_rate, activation, conv_dropout, bc=bc)
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def dense_stages(
    x: Any,
    depths: Sequence[int],
    growth_rate: int,
    activation: Activation,
    conv_dropout: float,
    *,
    bc: bool,
) -> Any:
    """Dense layers, each appending its features to its input, with transitions between stages.

    `bc` adds a 1x1 bottleneck to each layer and halves the channels in each transition.
    """
    h = partial(norm_act_conv, activation=activation, dropout=conv_dropout)
    for stage, depth in enumerate(depths, start=1):
        if stage > 1:
            name = f"stage{stage}_transition"
            x = h(x, x.shape[-1] // (2 if bc else 1), 1, name)
            x = keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x)
        for i in range(1, depth + 1):
            name = f"stage{stage}_block{i}"
            new = h(x, 4 * growth_rate, 1, f"{name}_bottleneck") if bc else x
            new = h(new, growth_rate, 3, name)
            x = keras.layers.Concatenate(name=f"{name}_concat")([x, new])
    return activate(norm(x, "head_norm"), activation, "head_act")


def norm_act_conv(
    x: Any, filters: int, kernel: int, name: str, *, activation: Activation, dropout: float
) -> Any:
    """The paper's composite function H (section 3)."""
    x = activate(norm(x, f"{name}_norm"), activation, f"{name}_act")
    x = conv(x, filters, kernel, f"{name}_conv")
    return drop(x, dropout, f"{name}_dropout")


for _name in IMAGENET:
    add_model(
        _name,
        partial(densenet, _name),
        COUNTS[_name],
        family="densenet",
        source="Huang et al. 2017, table 1",
        min_size=stem_min_size,
    )
for _name in CIFAR | CIFAR_BC:
    add_model(
        _name,
        partial(cifar_densenet, _name),
        COUNTS[_name],
        family="densenet",
        # Table 2 has no BC variant this small.
        source=f"Huang et al. 2017, {'section 3' if _name == 'densenet_bc_40_12' else 'table 2'}",
        native=(32, 32, 3),
        classes=10,
        min_size=4,
    )
