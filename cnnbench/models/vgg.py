"""VGG: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks", table 1."""

from __future__ import annotations

from functools import partial
from typing import Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import (
    Activation,
    activate,
    classifier,
    conv,
    drop,
    logits,
    norm,
    resize_map,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Rate

# Columns A, B, D and E: 3x3 convolutions in each of the five stages, and their filters.
DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
FILTERS = (64, 128, 256, 512, 512)
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "vgg11": (132_863_336, 7_609_090_048),
    "vgg13": (133_047_848, 11_308_466_176),
    "vgg16": (138_357_544, 15_470_264_320),
    "vgg19": (143_667_240, 19_632_062_464),
    "vgg11_bn": (132_868_840, 7_609_090_048),
    "vgg13_bn": (133_053_736, 11_308_466_176),
    "vgg16_bn": (138_365_992, 15_470_264_320),
    "vgg19_bn": (143_678_248, 19_632_062_464),
}


def vgg(
    name: str,
    depths: tuple[int, ...],
    batch_norm: bool,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    head: Literal["dense", "pool"] = "dense",
    activation: Activation = "relu",
    dropout: Rate = 0.5,
) -> keras.Model:
    """Stages of 3x3 convolutions and max pooling, and three dense layers.

    For images other than 224 pixels, feature maps are averaged or repeated to 7x7 before the dense
    layers, as in torchvision, so the weights fit every size. `head: pool` is one dense layer after
    global average pooling, as is common for 32x32 images. Deviation: weights are initialized as in
    He et al. 2015, while the paper initializes its deeper networks from a trained vgg11.
    """
    x = inputs = keras.Input(input_shape, name="images")
    for stage, (depth, filters) in enumerate(zip(depths, FILTERS, strict=True), start=1):
        for i in range(1, depth + 1):
            x = conv(x, filters, 3, f"stage{stage}_conv{i}", use_bias=True)
            if batch_norm:
                x = norm(x, f"stage{stage}_norm{i}")
            x = activate(x, activation, f"stage{stage}_act{i}")
        x = keras.layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    if head == "pool":
        return keras.Model(inputs, classifier(x, classes, dropout), name=name)
    x = keras.layers.Flatten(name="head_flatten")(resize_map(x, 7, "head_pool"))
    for i in (1, 2):
        normal = keras.initializers.RandomNormal(stddev=0.01)
        x = keras.layers.Dense(4096, kernel_initializer=normal, name=f"head_dense{i}")(x)
        x = activate(x, activation, f"head_act{i}")
        x = drop(x, dropout, f"head_dropout{i}")
    return keras.Model(inputs, logits(x, classes, dropout=0.0), name=name)


for _suffix in ("", "_bn"):
    for _depth, _depths in DEPTHS.items():
        _name = _depth + _suffix
        add_model(
            _name,
            partial(vgg, _name, _depths, bool(_suffix)),
            COUNTS[_name],
            family="vgg",
            source="Simonyan & Zisserman 2015, table 1",
            min_size=32,
        )
