"""Keras's optimizers as other libraries define them.

Importing this module imports Keras, so it is imported only when the optimizer is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnbench.backend import private
from cnnbench.backend.lazy import keras, tf


class SGD(keras.optimizers.SGD):
    """Momentum whose velocity sums gradients, as in PyTorch, Torch 7 and TensorFlow 1.

    For a weight w with gradient g,

        v <- momentum * v + g
        w <- w - lr * v, or w - lr * (g + momentum * v) with Nesterov momentum

    Keras's velocity sums steps, v <- momentum * v - lr * g, so that after a fall of the rate the
    steps go on at the old rate for a while. At a constant rate the two are the same.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        gradient = tf.cast(gradient, variable.dtype)
        step = gradient
        if self.momentum:
            velocity = self.momentums[private.variable_index(self, variable)]
            self.assign(velocity, self.momentum * velocity + gradient)
            step = gradient + self.momentum * velocity if self.nesterov else velocity
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * step)


class RMSprop(keras.optimizers.RMSprop):
    """RMSProp whose mean square starts at a value to choose; Keras's starts at 0."""

    def __init__(self, *arguments: Any, initial: float = 0.0, **options: Any):
        super().__init__(*arguments, **options)
        self.initial = initial

    def add_optimizer_variables(
        self, variables: Sequence[Any], name: Any, initializer: Any = "zeros"
    ) -> Any:
        """Creates the state of each variable; Keras calls the mean square its velocity."""
        if name == "velocity":
            initializer = keras.initializers.Constant(self.initial)
        return super().add_optimizer_variables(variables, name, initializer)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return super().get_config() | {"initial": self.initial}
