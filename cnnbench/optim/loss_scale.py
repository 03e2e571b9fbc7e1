"""Loss scaling for float16 gradients.

Importing this module imports Keras, so it is imported only when the optimizer is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnbench.backend.lazy import keras, tf


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras's dynamic loss scaling, but with one verdict on the gradients of all replicas.

    A step in which any replica has a gradient that is not finite is skipped by all of them, and
    halves the scale (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2). Keras's
    own asks the first replica only, before the gradients are summed.
    """

    def check_finite(self, gradients: Sequence[Any]) -> Any:
        """Returns whether the gradients are finite on all replicas, a scalar bool.

        Called in a replica's context.
        """
        overflow = tf.cast(tf.logical_not(super().check_finite(gradients)), tf.float32)
        replica = tf.distribute.get_replica_context()
        return tf.equal(replica.all_reduce(tf.distribute.ReduceOp.SUM, overflow), 0)
