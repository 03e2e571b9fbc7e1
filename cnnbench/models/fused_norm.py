"""Batch normalisation in one operation of TensorFlow.

Importing this module imports Keras, so it is imported when the first layer is built.
"""

from __future__ import annotations

from typing import Any

from cnnbench.lazy import keras, tf


@keras.saving.register_keras_serializable("cnnbench")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, with its weights and its numbers, computed by FusedBatchNormV3.

    Keras's own operations (Ioffe & Szegedy 2015, algorithm 1) each go through the whole batch
    again. They still compute what the one operation cannot: inputs other than images with the
    channels last, masks, renormalisation, float64 and statistics of several replicas.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises the inputs; see keras.layers.BatchNormalization."""
        # On a GPU, the gradient of the operation in inference mode is not deterministic.
        is_frozen = training and not self.trainable
        if is_frozen or mask is not None or not self._can_fuse(inputs):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        # cuDNN before 7.5 refused an epsilon below 1e-5; now it may be anything.
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
            # The operation divides by one less than the count, and Keras by the count. A single
            # value varies by nothing, whatever 0 / 0 gave.
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
            and not _is_compiled_by_xla()
        )

    def _move(self, average: Any, new: Any) -> None:
        average.assign(_float32(average) * self.momentum + new * (1 - self.momentum))


def plain(model: Any) -> Any:
    """Returns a copy of a functional model with Keras's layers alone, for files that others read.

    Names, paths and values of the weights are the model's.
    """

    def clone(layer: Any) -> Any:
        is_fused = isinstance(layer, FusedBatchNormalization)
        kind = keras.layers.BatchNormalization if is_fused else type(layer)
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _float32(variable: Any) -> Any:
    return keras.ops.cast(variable, "float32")


def _is_compiled_by_xla() -> bool:
    """Tells whether the function being traced is for XLA.

    XLA expands the operation to E[x^2] - E[x]^2, which loses every digit where the mean is a
    hundred times the deviation; Keras's operations it fuses by itself.
    """
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
