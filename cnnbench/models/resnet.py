"""ResNet: He et al. 2015, "Deep Residual Learning for Image Recognition", tables 1 and 6."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbench.lazy import keras
from cnnbench.models._layers import Activation, activate, classifier, conv, norm
from cnnbench.parts import MODELS

# Table 1: residual blocks in each of the four stages.
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet18", "resnet34")
# Section 4.2: 6n + 2 layers in three stages of n blocks.
CIFAR_DEPTHS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
# Trainable weights, and multiply-accumulates of one native image.
COUNTS = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
}

Dropout = Annotated[float, Field(ge=0, lt=1)]


def resnet(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    activation: Activation = "relu",
    dropout: Dropout = 0.0,
) -> keras.Model:
    """A ResNet for ImageNet, with the stride of a bottleneck in its 3x3 convolution.

    That stride (often called v1.5) is the one deviation from the paper, which has it in the first
    1x1. `stem: cifar` is a 3x3 convolution without stride or pooling, for images of 32 pixels.
    """
    x = inputs = keras.Input(input_shape, name="images")
    if stem == "imagenet":
        x = conv(x, 64, 7, "stem_conv", strides=2)
        x = activate(norm(x, "stem_norm"), activation, "stem_act")
        x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    else:
        x = conv(x, 64, 3, "stem_conv")
        x = activate(norm(x, "stem_norm"), activation, "stem_act")
    block = basic_block if name in BASIC else bottleneck_block
    for stage, depth in enumerate(DEPTHS[name], start=1):
        for i in range(1, depth + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            x = block(x, 64 * 2 ** (stage - 1), strides, activation, f"stage{stage}_block{i}")
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def cifar_resnet(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    activation: Activation = "relu",
    dropout: Dropout = 0.0,
) -> keras.Model:
    """A ResNet for 32-pixel images; its shortcuts have no parameters (option A)."""
    x = inputs = keras.Input(input_shape, name="images")
    x = conv(x, 16, 3, "stem_conv")
    x = activate(norm(x, "stem_norm"), activation, "stem_act")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for i in range(1, CIFAR_DEPTHS[name] + 1):
            strides = 2 if stage > 1 and i == 1 else 1
            x = basic_block(
                x, filters, strides, activation, f"stage{stage}_block{i}", identity_shortcut
            )
    return keras.Model(inputs, classifier(x, classes, dropout), name=name)


def projection_shortcut(x: Any, filters: int, strides: int, name: str) -> Any:
    """Option B: a 1x1 convolution where the shape changes."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    return norm(conv(x, filters, 1, f"{name}_shortcut", strides=strides), f"{name}_shortcut_norm")


def identity_shortcut(x: Any, filters: int, strides: int, name: str) -> Any:
    """Option A: every other pixel, and zeros for the channels that are new."""
    if strides > 1:
        x = keras.layers.AveragePooling2D(1, strides, name=f"{name}_shortcut_pool")(x)
    new = filters - x.shape[-1]
    if new:
        x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
    return x


def basic_block(
    x: Any,
    filters: int,
    strides: int,
    activation: Activation,
    name: str,
    shortcut: Any = projection_shortcut,
) -> Any:
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""
    residual = conv(x, filters, 3, f"{name}_conv1", strides=strides)
    residual = activate(norm(residual, f"{name}_norm1"), activation, f"{name}_act1")
    residual = norm(conv(residual, filters, 3, f"{name}_conv2"), f"{name}_norm2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut(x, filters, strides, name), residual])
    return activate(x, activation, f"{name}_act2")


def bottleneck_block(x: Any, filters: int, strides: int, activation: Activation, name: str) -> Any:
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut (figure 5)."""
    residual = conv(x, filters, 1, f"{name}_conv1")
    residual = activate(norm(residual, f"{name}_norm1"), activation, f"{name}_act1")
    residual = conv(residual, filters, 3, f"{name}_conv2", strides=strides)
    residual = activate(norm(residual, f"{name}_norm2"), activation, f"{name}_act2")
    residual = norm(conv(residual, 4 * filters, 1, f"{name}_conv3"), f"{name}_norm3")
    shortcut = projection_shortcut(x, 4 * filters, strides, name)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, residual])
    return activate(x, activation, f"{name}_act3")


for _name in DEPTHS:
    MODELS.add(
        _name,
        partial(resnet, _name),
        family="resnet",
        source="He et al. 2015, table 1",
        params=COUNTS[_name][0],
        macs=COUNTS[_name][1],
        native=(224, 224, 3),
        native_classes=1000,
        min_size=lambda options: 32 if options["stem"] == "imagenet" else 8,
    )
for _name in CIFAR_DEPTHS:
    MODELS.add(
        _name,
        partial(cifar_resnet, _name),
        family="resnet",
        source="He et al. 2015, table 6",
        params=COUNTS[_name][0],
        macs=COUNTS[_name][1],
        native=(32, 32, 3),
        native_classes=10,
        min_size=4,
    )
