"""The LARS optimizer, which Keras does not provide.

Importing this module imports Keras, so it is imported only when the optimizer is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnbench.backend import private
from cnnbench.backend.lazy import keras, tf
from cnnbench.optim.kernels import is_kernel


class Lars(keras.optimizers.SGD):
    """Layer-wise adaptive rate scaling (You et al. 2017, "Large Batch Training", algorithm 1).

    For a kernel w with gradient g,

        ratio = trust * |w| / (|g| + decay * |w|)
        v <- momentum * v + lr * ratio * (g + decay * w)
        w <- w - v

    The ratio is 1 where |w| or |g| is 0, a case the paper leaves open. Biases and norms use ratio 1
    and decay 0, which is SGD with momentum.
    """

    def __init__(
        self,
        learning_rate: float,
        momentum: float = 0.0,
        *,
        trust: float,
        decay: float = 0.0,
        **options: Any,
    ):
        super().__init__(learning_rate, momentum, **options)
        self.trust, self.decay = trust, decay

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the momentum buffers and records which variables are kernels."""
        super().build(variables)
        self._kernels = [is_kernel(variable) for variable in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        if self._kernels[private.variable_index(self, variable)]:
            gradient = self._rescaled(gradient, variable)
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"trust": self.trust, "decay": self.decay}

    def _rescaled(self, gradient: Any, kernel: Any) -> Any:
        """Returns ratio * (g + decay * w)."""
        g, w = tf.norm(gradient), tf.norm(kernel)
        ratio = tf.math.divide_no_nan(self.trust * w, g + self.decay * w)
        ratio = tf.where((g > 0) & (w > 0), ratio, 1.0)
        return ratio * (gradient + self.decay * kernel)
