"""Builds the optimizer of a recipe for the weights of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbench.backend import private
from cnnbench.backend.lazy import keras, tf
from cnnbench.errors import UsageError
from cnnbench.models.build import stage_of
from cnnbench.registry.kinds import OPTIMIZERS
from cnnbench.registry.registry import Spec

if TYPE_CHECKING:
    from cnnbench.recipe.sections import Train  # which names the optimizers here
from cnnbench.optim.kernels import is_kernel


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
    for number, group in enumerate(train.groups):
        if not any(group is each for each in found):
            paths = [variable.path for variable in variables]
            raise UsageError(
                f"{group.match!r} matches no weight that trains, or none that an "
                "earlier group has not",
                key=f"train.groups.{number}",
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
            i = private.variable_index(self, variable)
            learning_rate = tf.cast(learning_rate, variable.dtype) * scales[i].lr
            if decays[i]:
                self.assign_sub(variable, variable * (decays[i] * learning_rate))
            super().update_step(gradient, variable, learning_rate)

    scaled = Scaled.from_config(optimizer.get_config())
    scaled.weight_decay = None  # Keras's would be under one rate
    return scaled
