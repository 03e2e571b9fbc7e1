"""Optimizers, and what they do to which weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from cnnbench.errors import UsageError
from cnnbench.lazy import keras, tf
from cnnbench.models import stage_of
from cnnbench.parts import OPTIMIZERS
from cnnbench.registry import Spec

if TYPE_CHECKING:
    from cnnbench.recipe import Train  # which names the optimizers here

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


@OPTIMIZERS.register("lion")
def lion(
    *,
    lr: Rate,
    weight_decay: Decay = 0.0,
    beta_1: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    beta_2: Beta = 0.99,
) -> Any:
    """Lion, steps of one size (Chen et al. 2023); a third to a tenth of AdamW's rate."""
    return keras.optimizers.Lion(lr, beta_1, beta_2, weight_decay=weight_decay or None)


@OPTIMIZERS.register("lamb")
def lamb(
    *,
    lr: Rate,
    weight_decay: Decay = 0.0,
    beta_1: Beta = 0.9,
    beta_2: Beta = 0.999,
    epsilon: Epsilon = 1e-6,
) -> Any:
    """LAMB for large batches (You et al. 2020), the weight decay outside of its trust ratio."""
    return keras.optimizers.Lamb(lr, beta_1, beta_2, epsilon, weight_decay=weight_decay or None)


@OPTIMIZERS.register("lars", decoupled_decay=False)
def lars(
    *,
    lr: Rate,
    momentum: Beta = 0.9,
    weight_decay: Decay = 0.0,
    trust: Annotated[float, Field(gt=0)] = 0.001,
) -> Any:
    """LARS for large batches (You et al. 2017); the weight decay is in the trust ratio."""
    from cnnbench.lars import Lars

    return Lars(lr, momentum, trust=trust, decay=weight_decay)


def build_optimizer(spec: Spec, train: Train, variables: Sequence[Any]) -> Any:
    """Builds an optimizer with its state for a model's trainable variables.

    Its weight decay is decoupled, `w -= lr * weight_decay * w`, and touches kernels alone; that of
    LARS is in its trust ratio. Bounds on the gradient are those of each replica's equal part of
    the whole, so under several replicas they are to be given such parts.

    Args:
        spec: a recipe's `optimizer`.
        train: for the precision, bounds on the gradient, groups and the decay by layers.
        variables: what it updates.

    Raises:
        UsageError: a group has no variable.
    """
    optimizer = OPTIMIZERS.build(spec)
    if train.groups or train.layer_decay != 1:
        optimizer = _with_scales(optimizer, variables, _scales(variables, train))
    elif optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not is_kernel(v)])
    if clip := train.gradient_clip:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        optimizer.global_clipnorm = clip.norm and clip.norm / replicas
        optimizer.clipvalue = clip.value and clip.value / replicas
    if train.precision == "mixed_float16":  # which needs the loss scaled
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class Scale(NamedTuple):
    """What multiplies the learning rate and, besides that, the weight decay of one variable."""

    lr: float = 1.0
    weight_decay: float = 1.0


def _scales(variables: Sequence[Any], train: Train) -> list[Scale]:
    """Returns the scale of each variable: that of its group, and of its stage.

    Raises:
        UsageError: a group has no variable.
    """
    found = [next((g for g in train.groups if re.search(g.match, v.path)), None) for v in variables]
    for group in train.groups:
        if not any(group is each for each in found):
            paths = [variable.path for variable in variables]
            raise UsageError(
                f"train.groups: {group.match!r} matches no weight that trains, or none that an "
                "earlier group has not",
                allowed=f"there are {len(paths)}, such as {', '.join(_spread(paths, 6))}",
            )
    own = [Scale(group.lr_scale, group.weight_decay_scale) if group else Scale() for group in found]
    below = _stages_below_head(variables)
    return [
        each._replace(lr=each.lr * train.layer_decay**depth)
        for each, depth in zip(own, below, strict=True)
    ]


def _spread(items: Sequence[str], count: int) -> list[str]:
    """Returns so many items at most, from all over a sequence."""
    return list(items[:: math.ceil(len(items) / count)])


def _stages_below_head(variables: Sequence[Any]) -> list[int]:
    """Returns how many stages before the head each variable is: 0 in it, the most in the stem."""
    stages = [stage_of(variable.path) for variable in variables]
    numbers = {s: int(s.removeprefix("stage")) for s in stages if s.startswith("stage")}
    head = max(numbers.values(), default=0) + 1
    numbers["stem"] = 0
    return [head - numbers.get(stage, head) for stage in stages]


def _with_scales(optimizer: Any, variables: Sequence[Any], scales: Sequence[Scale]) -> Any:
    """Returns an optimizer that does to each variable what it did, under a rate of its own.

    Every optimizer here takes the learning rate of a variable's update as an argument, so this is
    exact for all of them.
    """
    kind: Any = type(optimizer)
    decay = optimizer.weight_decay or 0.0
    decays = [
        decay * scale.weight_decay if is_kernel(variable) else 0.0
        for variable, scale in zip(variables, scales, strict=True)
    ]

    class Scaled(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            i = self._get_variable_index(variable)
            learning_rate = tf.cast(learning_rate, variable.dtype) * scales[i].lr
            if decays[i]:
                self.assign_sub(variable, variable * (decays[i] * learning_rate))
            super().update_step(gradient, variable, learning_rate)

    scaled = Scaled.from_config(optimizer.get_config())
    scaled.weight_decay = None  # Keras's would be under one rate
    return scaled


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
