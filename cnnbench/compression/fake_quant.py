"""Fake quantization: float layers that simulate integer arithmetic (Jacob et al. 2018, section 3).

Importing this module imports Keras, so it is imported only when the first layer is built.
"""

from __future__ import annotations

from typing import Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.models.layers.fast import FastConv2D

# Decay of the moving averages of ranges; the paper says "close to 1" (section 3.1).
DECAY = 0.99


def on_grid(kernel: Any, bits: int, axes: tuple[int, ...]) -> Any:
    """Rounds a kernel to scale * q with integers |q| <= most = 2^(bits-1) - 1.

    The scale is max |w| / most. The range is symmetric and narrow, as TFLite's int8 specification
    requires. The gradient is straight-through; nothing is clipped.

    Args:
        kernel: float32.
        bits: bits of the integers.
        axes: axes that share a scale; the others are channels.
    """
    most = 2 ** (bits - 1) - 1

    def rounded(kernel: Any) -> Any:
        scale = tf.reduce_max(tf.abs(kernel), axes, keepdims=True) / most
        return tf.round(tf.math.divide_no_nan(kernel, scale)) * scale

    return tf.grad_pass_through(rounded)(kernel)


class _Quantizer(keras.layers.Layer):
    """Base class of layers that round to integers of `bits` bits."""

    def __init__(self, *args: Any, bits: int = 8, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.bits = bits

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"bits": self.bits}


class _FakeQuantKernel(_Quantizer):
    """Base class of layers with a rounded kernel, with one scale along `axes`."""

    axes: tuple[int, ...]

    def kernel_on_grid(self) -> Any:
        """Returns the rounded kernel that the layer computes with, float32."""
        return on_grid(keras.ops.convert_to_tensor(self.kernel), self.bits, self.axes)


@keras.saving.register_keras_serializable("cnnbench")
class FakeQuantConv2D(_FakeQuantKernel, FastConv2D):
    """A convolution, grouped or not, whose kernel has one scale per filter."""

    axes = (0, 1, 2)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolves; see keras.layers.Conv2D."""
        return super().convolution_op(inputs, self.kernel_on_grid())


@keras.saving.register_keras_serializable("cnnbench")
class FakeQuantDepthwiseConv2D(_FakeQuantKernel, keras.layers.DepthwiseConv2D):
    """A depthwise convolution whose kernel has one scale per channel."""

    axes = (0, 1)

    def call(self, inputs: Any) -> Any:
        """Convolves; see keras.layers.DepthwiseConv2D."""
        outputs = keras.ops.depthwise_conv(
            inputs, self.kernel_on_grid(), self.strides, self.padding
        )
        return outputs + self.bias if self.use_bias else outputs


@keras.saving.register_keras_serializable("cnnbench")
class FakeQuantDense(_FakeQuantKernel, keras.layers.Dense):
    """A dense layer whose kernel has one scale per unit."""

    axes = (0,)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Multiplies; see keras.layers.Dense."""
        outputs = keras.ops.matmul(inputs, self.kernel_on_grid())
        return outputs + self.bias if self.use_bias else outputs


@keras.saving.register_keras_serializable("cnnbench")
class FixedRange(_Quantizer):
    """Rounds to 2^bits values in [minimum, maximum], one of which is 0.

    The range is shifted slightly so that 0 is one of the values (section 3). Values outside are
    clipped and get no gradient.
    """

    def __init__(self, minimum: float, maximum: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.minimum, self.maximum = minimum, maximum

    def call(self, inputs: Any) -> Any:
        """Rounds inputs of any shape."""
        return tf.quantization.fake_quant_with_min_max_args(
            inputs, self.minimum, self.maximum, self.bits
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"minimum": self.minimum, "maximum": self.maximum}


@keras.saving.register_keras_serializable("cnnbench")
class MovingRange(_Quantizer):
    """Rounds like FixedRange, to a range that tracks the inputs during training.

    Tensors that must share a range, such as those that are concatenated, share a layer, each as a
    member; the range is the union of the members' ranges. A member's range is the moving average of
    the minimum and maximum of each batch, extended to include 0, or of the replicas' mean of those.
    The first batch sets the range; until then it is [0, 0], and all outputs are 0.

    Attributes:
        share: weight of an observed batch in the moving average, in training and inference; None:
            batches are observed only in training, with weight 1 - DECAY.
    """

    def __init__(self, members: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.members = members
        self.share: float | None = None

    def build(self, _: Any) -> None:
        """Creates the range of each member."""
        self.minimum, self.maximum = (
            self.add_weight(
                (self.members,), "zeros", trainable=False, aggregation="mean", name=name
            )
            for name in ("minimum", "maximum")
        )

    def call(self, inputs: Any, training: bool = False, member: int | None = None) -> Any:
        """Rounds inputs of any shape, and observes them first if they belong to a member.

        Args:
            inputs: float32.
            training: whether to observe the inputs even if `share` is None.
            member: index of the member that the inputs belong to; None: round only.
        """
        if member is not None and (training or self.share is not None):
            self._observe(inputs, member)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, *self.range(), self.bits)

    def range(self) -> tuple[Any, Any]:
        """Returns the minimum and maximum, float32 scalars."""
        return tf.reduce_min(self.minimum.value), tf.reduce_max(self.maximum.value)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"members": self.members}

    def _observe(self, inputs: Any, member: int) -> None:
        low, high = self.minimum.value, self.maximum.value
        share = tf.where(low < high, 1 - DECAY if self.share is None else self.share, 1.0)
        share *= tf.one_hot(member, self.members)
        self.minimum.assign(low + share * (tf.minimum(tf.reduce_min(inputs), 0.0) - low))
        self.maximum.assign(high + share * (tf.maximum(tf.reduce_max(inputs), 0.0) - high))
