"""Optimizers, and which weights they decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from cnnbench.lazy import keras, tf
from cnnbench.parts import OPTIMIZERS
from cnnbench.registry import Spec

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(gt=0)]


@OPTIMIZERS.register("sgd")
def sgd(
    *, lr: Rate, momentum: Beta = 0.0, nesterov: bool = False, weight_decay: Decay = 0.0
) -> Any:
    """Stochastic gradient descent; plain unless momentum is set."""
    return keras.optimizers.SGD(lr, momentum, nesterov, weight_decay=weight_decay or None)


@OPTIMIZERS.register("momentum")
def momentum(*, lr: Rate, momentum: Beta = 0.9, weight_decay: Decay = 0.0) -> Any:
    """SGD with momentum (Polyak 1964)."""
    return sgd(lr=lr, momentum=momentum, weight_decay=weight_decay)


@OPTIMIZERS.register("nesterov")
def nesterov(*, lr: Rate, momentum: Beta = 0.9, weight_decay: Decay = 0.0) -> Any:
    """SGD with Nesterov's momentum (Sutskever et al. 2013)."""
    return sgd(lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay)


@OPTIMIZERS.register("adagrad")
def adagrad(*, lr: Rate, weight_decay: Decay = 0.0, epsilon: Epsilon = 1e-7) -> Any:
    """Adagrad (Duchi et al. 2011)."""
    return keras.optimizers.Adagrad(lr, epsilon=epsilon, weight_decay=weight_decay or None)


@OPTIMIZERS.register("rmsprop")
def rmsprop(
    *,
    lr: Rate,
    rho: Beta = 0.9,
    momentum: Beta = 0.0,
    weight_decay: Decay = 0.0,
    epsilon: Epsilon = 1e-7,
) -> Any:
    """RMSProp (Tieleman & Hinton 2012)."""
    return keras.optimizers.RMSprop(
        lr, rho, momentum, epsilon=epsilon, weight_decay=weight_decay or None
    )


@OPTIMIZERS.register("adam")
def adam(*, lr: Rate, beta_1: Beta = 0.9, beta_2: Beta = 0.999, epsilon: Epsilon = 1e-7) -> Any:
    """Adam (Kingma & Ba 2015)."""
    return keras.optimizers.Adam(lr, beta_1, beta_2, epsilon)


@OPTIMIZERS.register("adamw")
def adamw(
    *,
    lr: Rate,
    weight_decay: Decay = 0.01,
    beta_1: Beta = 0.9,
    beta_2: Beta = 0.999,
    epsilon: Epsilon = 1e-7,
) -> Any:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return keras.optimizers.AdamW(lr, weight_decay, beta_1, beta_2, epsilon)


def build_optimizer(spec: Spec, variables: Sequence[Any], *, loss_scaling: bool) -> Any:
    """Builds an optimizer with its state for a model's trainable variables.

    Its weight decay is decoupled, `w -= lr * weight_decay * w`, and touches kernels alone.

    Args:
        spec: a recipe's `optimizer`.
        variables: what it updates.
        loss_scaling: whether gradients are float16 and need the loss scaled.
    """
    optimizer = OPTIMIZERS.build(spec)
    if optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not is_kernel(v)])
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def penalty(variables: Sequence[Any], l1: float, l2: float) -> Any:
    """Returns l1 * sum |w| + l2 / 2 * sum w^2 over kernels, a float32 scalar."""
    kernels = [v.value for v in variables if is_kernel(v)]
    total = tf.constant(0.0)
    if l1:
        total += l1 * tf.add_n([tf.reduce_sum(tf.abs(kernel)) for kernel in kernels])
    if l2:
        total += l2 * tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])
    return total


def is_kernel(variable: Any) -> bool:
    """Tells a kernel from biases, norm scales and activation slopes, which are not decayed."""
    return variable.name == "kernel" or variable.name.endswith("_kernel")
