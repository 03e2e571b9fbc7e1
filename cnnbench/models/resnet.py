"""ResNet: He et al. 2015, "Deep Residual Learning for Image Recognition", tables 1 and 6."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    activate,
    classifier,
    conv,
    drop_path,
    norm,
    squeeze_excite,
    stem_min_size,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Fraction, Rate


class Bottlenecks(NamedTuple):
    """A column of a paper's table of bottleneck networks.

    Attributes:
        depths: blocks in each stage.
        groups: groups of the 3x3 convolutions.
        width: channels per group in the first stage; doubles with every stage.
    """

    depths: tuple[int, ...]
    groups: int = 1
    width: int = 64


# Table 1: residual blocks in each of the four stages.
BASIC = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
BOTTLENECK = {
    "resnet50": Bottlenecks((3, 4, 6, 3)),
    "resnet101": Bottlenecks((3, 4, 23, 3)),
    "resnet152": Bottlenecks((3, 8, 36, 3)),
}
# Section 4.2: 6n + 2 layers in three stages of n blocks; the paper has those from n = 3.
CIFAR = {f"resnet{6 * n + 2}": (n, n, n) for n in (1, 2, 3, 5, 7, 9, 18)}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet8": (75_290, 12_239_488),
    "resnet14": (172_506, 26_395_264),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
}

Stem = Literal["imagenet", "deep", "cifar"]


def basic_resnet(
    name: str,
    depths: tuple[int, ...],
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Stem = "imagenet",
    se_ratio: Fraction = 0.0,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNet for ImageNet, with two 3x3 convolutions per block.

    Stems and squeeze-and-excite are those of `bottleneck_resnet`.
    """
    block = partial(basic_block, activation=activation, se_ratio=se_ratio, shortcut=_shortcut(stem))
    x = inputs = keras.Input(input_shape, name="images")
    x = STEMS[stem](x, activation)
    x = stages(x, depths, 64, block, drop_path_rate)
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def bottleneck_resnet(
    name: str,
    net: Bottlenecks,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Stem = "imagenet",
    stride: Literal["first", "second"] = "second",
    se_ratio: Fraction = 0.0,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNet for ImageNet, with 1x1, 3x3 and 1x1 convolutions per block.

    Args:
        name: name of the model.
        net: the column of the paper's table.
        input_shape: (height, width, channels) of the images.
        classes: number of logits.
        stem: "deep" is ResNet-D (He et al. 2018, "Bag of Tricks", figure 2): three 3x3 convolutions
            in the stem, and average pooling before the projection in shortcuts. "cifar" is one 3x3
            convolution without stride or pooling, for 32x32 images.
        stride: which convolution of a block has the stride: "first", the 1x1, as in the paper and
            keras.applications, or "second", the 3x3, which is common now and known as v1.5.
        se_ratio: squeeze-and-excite width (Hu et al. 2018, who use 1/16) as a fraction of the
            block's output channels; 0 disables it.
        drop_path_rate: drop path rate of the last block (Huang et al. 2016).
        activation: activation after each batch norm.
        dropout: dropout rate before the logits.
    """
    block = partial(
        bottleneck_block,
        net=net,
        stride=stride,
        activation=activation,
        se_ratio=se_ratio,
        shortcut=_shortcut(stem),
    )
    x = inputs = keras.Input(input_shape, name="images")
    x = STEMS[stem](x, activation)
    x = stages(x, net.depths, 64, block, drop_path_rate)
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def cifar_resnet(
    name: str,
    depths: tuple[int, ...],
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    se_ratio: Fraction = 0.0,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNet for 32x32 images, with parameter-free shortcuts (option A)."""
    block = partial(
        basic_block, activation=activation, se_ratio=se_ratio, shortcut=identity_shortcut
    )
    x = inputs = keras.Input(input_shape, name="images")
    x = cifar_stem(x, activation, filters=16)
    x = stages(x, depths, 16, block, drop_path_rate)
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def stages(
    x: Any,
    depths: tuple[int, ...],
    filters: int,
    block: Callable[..., Any],
    drop_path_rate: float = 0.0,
) -> Any:
    """Stacks blocks; each stage after the first halves the size and doubles the filters.

    `block` is a function of (x, filters, strides, name, drop_rate). The drop path rate grows
    linearly with depth (Huang et al. 2016, equation 4).
    """
    count = 0
    for stage, depth in enumerate(depths, start=1):
        for i in range(1, depth + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            count += 1
            rate = drop_path_rate * count / sum(depths)
            x = block(x, filters * 2 ** (stage - 1), strides, f"stage{stage}_block{i}", rate)
    return x


def imagenet_stem(x: Any, activation: Activation) -> Any:
    """7x7 convolution and max pooling, which reduce the size to a quarter."""
    x = conv(x, 64, 7, "stem_conv", strides=2)
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    return stem_pool(x)


def deep_stem(x: Any, activation: Activation) -> Any:
    """Three 3x3 convolutions instead of the 7x7 (introduced by ResNet-C, used in ResNet-D)."""
    for i, (filters, strides) in enumerate(((32, 2), (32, 1), (64, 1)), start=1):
        x = conv(x, filters, 3, f"stem_conv{i}", strides=strides)
        x = activate(norm(x, f"stem_norm{i}"), activation, f"stem_act{i}")
    return stem_pool(x)


def cifar_stem(x: Any, activation: Activation, filters: int = 64) -> Any:
    """3x3 convolution that keeps the size."""
    x = conv(x, filters, 3, "stem_conv")
    return activate(norm(x, "stem_norm"), activation, "stem_act")


def stem_pool(x: Any) -> Any:
    """3x3 max pooling, which halves the size."""
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)


STEMS = {"imagenet": imagenet_stem, "deep": deep_stem, "cifar": cifar_stem}


def projection_shortcut(x: Any, filters: int, strides: int, name: str) -> Any:
    """Option B: a 1x1 convolution if the shape changes."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    return norm(conv(x, filters, 1, f"{name}_shortcut", strides=strides), f"{name}_shortcut_norm")


def pooled_shortcut(x: Any, filters: int, strides: int, name: str) -> Any:
    """Option B of ResNet-D: average pooling before the 1x1 convolution, so no pixel is ignored."""
    if strides > 1:
        x = keras.layers.AveragePooling2D(2, strides, "same", name=f"{name}_pool")(x)
    return projection_shortcut(x, filters, 1, f"{name}_pool")


def identity_shortcut(x: Any, filters: int, strides: int, name: str) -> Any:
    """Option A: every second pixel, and zeros for the additional channels."""
    if strides > 1:
        x = keras.layers.AveragePooling2D(1, strides, name=f"{name}_shortcut_pool")(x)
    new = filters - x.shape[-1]
    if new:
        # "channels_first" pads the last two axes: the width (by 0) and the channels.
        padding = ((0, 0), (new // 2, new - new // 2))
        pad = keras.layers.ZeroPadding2D(padding, "channels_first", name=f"{name}_shortcut_pad")
        x = pad(x)
    return x


def _shortcut(stem: Stem) -> Callable[[Any, int, int, str], Any]:
    return pooled_shortcut if stem == "deep" else projection_shortcut


def basic_block(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    drop_rate: float,
    *,
    activation: Activation,
    se_ratio: float,
    shortcut: Callable[[Any, int, int, str], Any],
) -> Any:
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""
    residual = conv(x, filters, 3, f"{name}_conv1", strides=strides)
    residual = activate(norm(residual, f"{name}_norm1"), activation, f"{name}_act1")
    residual = norm(conv(residual, filters, 3, f"{name}_conv2"), f"{name}_norm2")
    x = merge(shortcut(x, filters, strides, name), residual, name, se_ratio, drop_rate)
    return activate(x, activation, f"{name}_act2")


def bottleneck_block(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    drop_rate: float,
    *,
    net: Bottlenecks,
    stride: Literal["first", "second"],
    activation: Activation,
    se_ratio: float,
    shortcut: Callable[[Any, int, int, str], Any],
) -> Any:
    """1x1, 3x3 and 1x1 convolutions, the last to 4 * filters, and a shortcut (figure 5, right)."""
    first, second = (strides, 1) if stride == "first" else (1, strides)
    width = net.groups * net.width * filters // 64
    residual = conv(x, width, 1, f"{name}_conv1", strides=first)
    residual = activate(norm(residual, f"{name}_norm1"), activation, f"{name}_act1")
    residual = conv(residual, width, 3, f"{name}_conv2", strides=second, groups=net.groups)
    residual = activate(norm(residual, f"{name}_norm2"), activation, f"{name}_act2")
    residual = norm(conv(residual, 4 * filters, 1, f"{name}_conv3"), f"{name}_norm3")
    x = merge(shortcut(x, 4 * filters, strides, name), residual, name, se_ratio, drop_rate)
    return activate(x, activation, f"{name}_act3")


def merge(shortcut: Any, residual: Any, name: str, se_ratio: float, drop_rate: float) -> Any:
    """Adds the residual to the shortcut, after squeeze-and-excite and drop path."""
    if se_ratio:
        squeezed = max(1, round(residual.shape[-1] * se_ratio))
        residual = squeeze_excite(residual, squeezed, f"{name}_se")
    residual = drop_path(residual, drop_rate, f"{name}_drop_path")
    return keras.layers.Add(name=f"{name}_add")([shortcut, residual])


_BUILDERS = {name: partial(basic_resnet, name, depths) for name, depths in BASIC.items()}
_BUILDERS |= {name: partial(bottleneck_resnet, name, net) for name, net in BOTTLENECK.items()}
for _name, _build in _BUILDERS.items():
    add_model(
        _name,
        _build,
        COUNTS[_name],
        family="resnet",
        source="He et al. 2015, table 1",
        min_size=stem_min_size,
    )
for _name, _depths in CIFAR.items():
    add_model(
        _name,
        partial(cifar_resnet, _name, _depths),
        COUNTS[_name],
        family="resnet",
        source="He et al. 2015, table 6",
        native=(32, 32, 3),
        classes=10,
        min_size=4,
    )
