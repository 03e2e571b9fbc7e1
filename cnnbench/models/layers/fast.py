"""Drop-in replacements of Keras layers: same weights and results, but faster.

Importing this module imports Keras, so it is imported when the first layer is built.
"""

from __future__ import annotations

from typing import Any

from cnnbench.backend import private
from cnnbench.backend.lazy import keras, tf
from cnnbench.models.layers.dropout import Dropout

# Groups with fewer input channels than this are joined into one dense convolution.
JOINED_CHANNELS = 16


@keras.saving.register_keras_serializable("cnnbench")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """BatchNormalization computed by FusedBatchNormV3, with the same weights and results.

    Keras's own operations (Ioffe & Szegedy 2015, algorithm 1) each read the whole batch again. They
    are still used where the fused operation does not apply: inputs that are not channels-last
    images, masks, renormalization, float64, and statistics over several replicas.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalizes the inputs; see keras.layers.BatchNormalization."""
        # On a GPU, the gradient of the fused operation in inference mode is not deterministic.
        is_frozen = training and not self.trainable
        if is_frozen or mask is not None or not self._can_fuse(inputs):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        # Any epsilon is allowed; cuDNN before 7.5 required at least 1e-5.
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=_float32(self.gamma) if self.scale else tf.ones(channels),
            offset=_float32(self.beta) if self.center else tf.zeros(channels),
            mean=tf.zeros(0) if training else _float32(self.moving_mean),
            variance=tf.zeros(0) if training else _float32(self.moving_variance),
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            # The operation returns the variance over count - 1, and Keras uses the one over count.
            # For a count of 1, this replaces the NaN of 0 / 0 by 0.
            count = tf.cast(tf.size(inputs, tf.int64) // channels, tf.float32)
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, tf.math.multiply_no_nan(variance, 1 - 1 / count))
        return tf.cast(outputs, self.compute_dtype)

    def _can_fuse(self, inputs: Any) -> bool:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype in (tf.float16, tf.bfloat16, tf.float32)
            and not self.renorm
            and not (self.synchronized and replicas > 1)
            # XLA expands the operation to E[x^2] - E[x]^2, which loses all precision if the mean is
            # a hundred times the standard deviation. XLA fuses Keras's operations anyway.
            and not private.is_compiled_by_xla()
        )

    def _move(self, average: Any, new: Any) -> None:
        average.assign(_float32(average) * self.momentum + new * (1 - self.momentum))


@keras.saving.register_keras_serializable("cnnbench")
class FastConv2D(keras.layers.Conv2D):
    """Conv2D with faster 1x1 and grouped convolutions on a CPU.

    1x1 convolutions without strides are matrix products, which avoid the setup of a convolution.
    Grouped convolutions have no CPU gradient in TensorFlow, so Keras compiles them with XLA, which
    is many times slower; here they are dense convolutions, each of one or a few groups. Narrow
    groups are joined into a block-diagonal kernel, because convolving a few channels at a time
    wastes more than the zeros. GPUs have kernels for all cases, so Keras's operations are used.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Applies the convolution; see keras.layers.Conv2D."""
        is_plain = self.data_format == "channels_last" and self.dilation_rate == (1, 1)
        if not is_plain or tf.config.list_physical_devices("GPU"):
            return super().convolution_op(inputs, kernel)
        kernel = tf.convert_to_tensor(kernel)
        if self.groups > 1:
            return self._convolve_groups(inputs, kernel)
        if self.kernel_size == (1, 1) and self.strides == (1, 1):
            return tf.tensordot(inputs, tf.reshape(kernel, kernel.shape[2:]), 1)
        return super().convolution_op(inputs, kernel)

    def _convolve_groups(self, inputs: Any, kernel: Any) -> Any:
        wanted = max(1, JOINED_CHANNELS // kernel.shape[2])
        joined = max(n for n in range(1, wanted + 1) if self.groups % n == 0)
        parts = self.groups // joined
        outputs = [
            tf.nn.conv2d(x, _block_diagonal(part, joined), self.strides, self.padding.upper())
            for x, part in zip(
                tf.split(inputs, parts, -1), tf.split(kernel, parts, -1), strict=True
            )
        ]
        return tf.concat(outputs, -1)


PLAIN = {
    FusedBatchNormalization: keras.layers.BatchNormalization,
    FastConv2D: keras.layers.Conv2D,
    Dropout: keras.layers.Dropout,
}


def _block_diagonal(kernel: Any, groups: int) -> Any:
    """Returns the kernel of a dense convolution that is equivalent to a grouped one."""
    if groups == 1:
        return kernel
    height, width, channels, filters = kernel.shape
    own = tf.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    blocks = tf.reshape(kernel, (height, width, 1, channels, groups, filters // groups)) * own
    return tf.reshape(blocks, (height, width, groups * channels, filters))


def plain(model: Any) -> Any:
    """Returns a copy of a functional model with only built-in Keras layers, for exported files.

    Names, paths and values of the weights are unchanged.
    """

    def clone(layer: Any) -> Any:
        return PLAIN.get(type(layer), type(layer)).from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _float32(variable: Any) -> Any:
    return keras.ops.cast(variable, "float32")
