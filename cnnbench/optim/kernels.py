"""Kernel weights, and the L1 and L2 penalties on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cnnbench.backend.lazy import tf


def penalty(variables: Sequence[Any], l1: float, l2: float) -> Any:
    """Returns l1 * sum |w| + l2 / 2 * sum w^2 over the kernels, a float32 scalar."""
    kernels = [v.value for v in variables if is_kernel(v)]
    total = tf.constant(0.0)
    if l1:
        total += l1 * tf.add_n([tf.reduce_sum(tf.abs(kernel)) for kernel in kernels])
    if l2:
        total += l2 * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
    return total


def is_kernel(variable: Any) -> bool:
    """Returns whether a variable is a kernel.

    Biases, norm scales and activation slopes are not kernels, and are not decayed.
    """
    return variable.name == "kernel" or variable.name.endswith("_kernel")
