"""Building blocks shared by several families."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from cnnbench.backend.lazy import keras, tf

Activation = Literal[
    "relu", "relu6", "leaky_relu", "prelu", "elu", "swish", "hard_swish", "gelu", "tanh"
]
Padding = Literal["same", "symmetric"]

# He et al. 2015, "Delving Deep into Rectifiers", in the fan-out (backward) form.
HE_FAN_OUT = {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"}


def activate(x: Any, activation: Activation, name: str) -> Any:
    """Applies an activation; PReLU learns one slope per channel (He et al. 2015, section 2.1)."""
    if activation == "prelu":
        slope = keras.initializers.Constant(0.25)
        axes = list(range(1, len(x.shape) - 1))
        return keras.layers.PReLU(slope, shared_axes=axes or None, name=name)(x)
    return keras.layers.Activation(activation, name=name)(x)


def conv(
    x: Any,
    filters: int,
    kernel: int,
    name: str,
    *,
    strides: int = 1,
    groups: int = 1,
    padding: Padding = "symmetric",
    use_bias: bool = False,
) -> Any:
    """Applies a padded convolution, by default without a bias because a batch norm follows.

    Padding of a strided convolution is "symmetric", kernel // 2 on all four sides, as in Caffe and
    Torch, or "same", as in TensorFlow, which pads an even size only at the bottom and right.
    """
    if strides > 1 and kernel > 1 and padding == "symmetric":
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    from cnnbench.models.layers.fast import FastConv2D

    return FastConv2D(
        filters,
        kernel,
        strides,
        "valid" if strides > 1 and padding == "symmetric" else "same",
        groups=groups,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(**HE_FAN_OUT),
        name=name,
    )(x)


def depthwise(
    x: Any, kernel: int, name: str, *, strides: int = 1, padding: Padding = "same"
) -> Any:
    """Applies a depthwise convolution without a bias; see `conv` for the padding."""
    if strides > 1 and padding == "symmetric":
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    return keras.layers.DepthwiseConv2D(
        kernel,
        strides,
        "valid" if strides > 1 and padding == "symmetric" else "same",
        use_bias=False,
        depthwise_initializer=keras.initializers.VarianceScaling(**HE_FAN_OUT),
        name=name,
    )(x)


def make_divisible(filters: float, divisor: int = 8) -> int:
    """Rounds a scaled width to a multiple of the divisor without losing more than 10 %.

    The papers do not mention it; it is in the code of MobileNetV2 and its successors.
    """
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * filters else rounded


def squeeze_excite(
    x: Any,
    filters: int,
    name: str,
    *,
    activation: Activation = "relu",
    gate: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
) -> Any:
    """Scales each channel by a gate computed from the means of all channels (Hu et al. 2018).

    `filters` is the width of the bottleneck.
    """
    from cnnbench.models.layers.fast import FastConv2D

    dense = partial(
        FastConv2D,
        kernel_size=1,
        kernel_initializer=keras.initializers.VarianceScaling(**HE_FAN_OUT),
    )
    gates = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    gates = dense(filters, name=f"{name}_reduce")(gates)
    gates = activate(gates, activation, f"{name}_act")
    gates = dense(x.shape[-1], name=f"{name}_expand")(gates)
    gates = keras.layers.Activation(gate, name=f"{name}_gate")(gates)
    return keras.layers.Multiply(name=f"{name}_scale")([x, gates])


def drop_path(x: Any, rate: float, name: str) -> Any:
    """Stochastic depth: drops the whole residual of an image in training (Huang et al. 2016)."""
    return drop(x, rate, name, noise_shape=(None, 1, 1, 1))


def drop(x: Any, rate: float, name: str, **options: Any) -> Any:
    """Sets random units to 0 in training (Srivastava et al. 2014)."""
    from cnnbench.models.layers.dropout import Dropout

    return Dropout(rate, name=name, **options)(x) if rate else x


def norm(
    x: Any, name: str, *, epsilon: float = 1e-5, momentum: float = 0.9, scale: bool = True
) -> Any:
    """Applies batch norm (Ioffe & Szegedy 2015), synchronized across replicas."""
    from cnnbench.models.layers.fast import FusedBatchNormalization

    return FusedBatchNormalization(
        momentum=momentum,
        epsilon=epsilon,
        scale=scale,
        synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
        name=name,
    )(x)


class Layers(NamedTuple):
    """The layers of a network, with its padding and the epsilon of its batch norm."""

    conv: Callable[..., Any]
    depthwise: Callable[..., Any]
    norm: Callable[..., Any]

    @classmethod
    def of(cls, padding: Padding, epsilon: float, momentum: float) -> Layers:
        """Returns the layers with the given padding, epsilon and momentum."""
        return cls(
            partial(conv, padding=padding),
            partial(depthwise, padding=padding),
            partial(norm, epsilon=epsilon, momentum=momentum),
        )


def resize_map(x: Any, size: int, name: str) -> Any:
    """Averages or repeats pixels to size x size, like PyTorch's adaptive average pooling."""
    # In graph mode, Keras's adaptive pooling fails on an axis of a single pixel.
    repeats = tuple(size if pixels == 1 else 1 for pixels in x.shape[1:3])
    if repeats != (1, 1):
        x = keras.layers.UpSampling2D(repeats, name=f"{name}_repeat")(x)
    if x.shape[1:3] != (size, size):
        x = keras.layers.AdaptiveAveragePooling2D(size, name=name)(x)
    return x


def stem_min_size(options: dict[str, Any]) -> int:
    """Returns the smallest image size in pixels: stages halve it 3 times, most stems twice more."""
    return 8 if options["stem"] == "cifar" else 32


def classifier(x: Any, classes: int, dropout: float) -> Any:
    """Global average pooling, dropout and a dense layer: (batch, classes) float32 logits."""
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    return logits(x, classes, dropout)


def logits(x: Any, classes: int, dropout: float) -> Any:
    """Dropout and the last dense layer, which is float32 under any dtype policy."""
    x = drop(x, dropout, "head_dropout")
    return keras.layers.Dense(classes, dtype="float32", name="logits")(x)
