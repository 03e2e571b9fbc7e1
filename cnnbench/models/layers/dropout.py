"""Dropout whose masks differ between replicas.

Importing this module imports Keras, so it is imported when the first layer is built.
"""

from __future__ import annotations

from typing import Any

from cnnbench.backend.lazy import keras, tf


@keras.saving.register_keras_serializable("cnnbench")
class Dropout(keras.layers.Dropout):
    """Keras's dropout, but each replica draws masks of its own.

    Keras's seed is the same on all replicas, so that the images of different replicas would lose
    the same units. Here the replica's number is folded into it. A single replica draws Keras's
    masks.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drops units in training; see keras.layers.Dropout."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if not training or self.rate == 0 or replicas == 1:
            return super().call(inputs, training=training)
        sizes = self.noise_shape or (None,) * len(inputs.shape)
        shape = [tf.shape(inputs)[i] if n is None else n for i, n in enumerate(sizes)]
        return tf.nn.experimental.stateless_dropout(
            inputs, rate=self.rate, seed=self._seed_of_replica(), noise_shape=shape
        )

    def _seed_of_replica(self) -> Any:
        """Returns the next seed of this replica, (2,) int32; called in a replica's context."""
        # Keras's seeds are unsigned.
        seed = tf.cast(tf.math.floormod(self.seed_generator.next(), tf.int32.max), tf.int32)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.random.experimental.stateless_fold_in(seed, replica)
