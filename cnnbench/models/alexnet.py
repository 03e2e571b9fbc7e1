"""AlexNet: Krizhevsky et al. 2012, "ImageNet Classification with Deep CNNs", with one tower."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from cnnbench.backend.lazy import keras, tf
from cnnbench.models.layers.blocks import (
    HE_FAN_OUT,
    Activation,
    activate,
    classifier,
    conv,
    drop,
    logits,
    resize_map,
)
from cnnbench.registry.kinds import MODELS
from cnnbench.registry.limits import Rate


@MODELS.register(
    "alexnet",
    family="alexnet",
    source="Krizhevsky 2014, one tower; torchvision",
    params=61_100_840,
    macs=714_188_480,
    native=(224, 224, 3),
    native_classes=1000,
    # 15, 7, 3 and 1 pixels after the stem and the pools; 8, 4, 2 and 1 in the CIFAR variant.
    min_size=lambda options: 63 if options["stem"] == "imagenet" else 29,
)
def alexnet(
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    lrn: bool = False,
    activation: Activation = "relu",
    dropout: Rate = 0.5,
) -> keras.Model:
    """Five convolutions and three dense layers.

    The filters are those of the single tower of Krizhevsky 2014, "One weird trick", and the layout
    is torchvision's: for images other than 224 pixels, feature maps are averaged or repeated to 6x6
    before the dense layers. Convolutions are initialized as in He et al. 2015 with zero biases; the
    paper draws from N(0, 0.01) and sets some biases to one.

    Args:
        input_shape: (height, width, channels) of the images.
        classes: number of logits.
        stem: "cifar" is the variant for 32x32 images in bearpaw/pytorch-classification, which
            reports 77.2 % on CIFAR-10: wider padding in the stem, 2x2 pooling, and one dense layer
            instead of three. It has no dropout there.
        lrn: local response normalization after the first two convolutions, as in section 3.3; the
            single tower has none.
        activation: activation after each convolution and hidden dense layer.
        dropout: rate before both hidden dense layers, or before the logits of the CIFAR variant.
    """
    padding, pool = (2, 3) if stem == "imagenet" else (5, 2)
    x = inputs = keras.Input(input_shape, name="images")
    x = keras.layers.ZeroPadding2D(padding, name="stage1_conv_pad")(x)
    normal = keras.initializers.VarianceScaling(**HE_FAN_OUT)
    x = keras.layers.Conv2D(64, 11, 4, kernel_initializer=normal, name="stage1_conv")(x)
    x = activate(x, activation, "stage1_act")
    if lrn:
        x = _lrn(x, "stage1_lrn")
    x = keras.layers.MaxPooling2D(pool, 2, name="stage1_pool")(x)
    x = conv(x, 192, 5, "stage2_conv", use_bias=True)
    x = activate(x, activation, "stage2_act")
    if lrn:
        x = _lrn(x, "stage2_lrn")
    x = keras.layers.MaxPooling2D(pool, 2, name="stage2_pool")(x)
    for i, filters in enumerate((384, 256, 256), start=1):
        x = conv(x, filters, 3, f"stage3_conv{i}", use_bias=True)
        x = activate(x, activation, f"stage3_act{i}")
    x = keras.layers.MaxPooling2D(pool, 2, name="stage3_pool")(x)
    if stem == "cifar":
        return keras.Model(inputs, classifier(x, classes, dropout), name="alexnet")
    x = keras.layers.Flatten(name="head_flatten")(resize_map(x, 6, "head_pool"))
    for i in (1, 2):
        x = drop(x, dropout, f"head_dropout{i}")
        normal = keras.initializers.RandomNormal(stddev=0.01)
        x = keras.layers.Dense(4096, kernel_initializer=normal, name=f"head_dense{i}")(x)
        x = activate(x, activation, f"head_act{i}")
    return keras.Model(inputs, logits(x, classes, dropout=0.0), name="alexnet")


def _lrn(x: Any, name: str) -> Any:
    """Local response normalization in float32, the only dtype with kernels on every device."""
    return _local_response_normalization()(dtype="float32", name=name)(x)


@cache
def _local_response_normalization() -> type:
    """Returns the layer class, which cannot be defined before Keras is imported."""

    @keras.saving.register_keras_serializable("cnnbench")
    class LocalResponseNormalization(keras.layers.Layer):
        """Divides by (2 + 1e-4 * s) ** 0.75; s sums the squares of a channel and 4 neighbors."""

        def call(self, x: Any) -> Any:
            return tf.nn.local_response_normalization(x, 2, bias=2.0, alpha=1e-4, beta=0.75)

    return LocalResponseNormalization
