"""Builds the optimizer of a recipe for the weights of a model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnbench.backend import private
from cnnbench.backend.lazy import tf
from cnnbench.errors import UsageError
from cnnbench.models.build import stage_of
from cnnbench.optim.kernels import is_kernel
from cnnbench.registry.kinds import OPTIMIZERS
from cnnbench.registry.registry import Spec

if TYPE_CHECKING:
    from cnnbench.recipe.sections import Train


def build_optimizer(spec: Spec, train: Train, variables: Sequence[Any]) -> Any:
    """Builds an optimizer and its state for a model's trainable variables.

    Weight decay is decoupled, `w -= lr * weight_decay * w`, and applies to kernels only; that of
    LARS is part of its trust ratio. Gradient clipping bounds are divided by the number of replicas,
    so each replica must pass its equal share of the whole gradient.

    Args:
        spec: a recipe's `optimizer`.
        train: a recipe's `train`, for precision, gradient clipping, groups and layer decay.
        variables: the variables to update.

    Raises:
        UsageError: a group matches no variable.
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
    if train.precision == "mixed_float16":  # float16 needs loss scaling
        from cnnbench.optim.loss_scale import LossScaleOptimizer

        optimizer = LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class Scale(NamedTuple):
    """Factors of one variable's learning rate and, on top of that, of its weight decay."""

    lr: float = 1.0
    weight_decay: float = 1.0


def _scales(variables: Sequence[Any], train: Train) -> list[Scale]:
    """Returns the scale of each variable, from its group and the layer decay of its stage.

    Raises:
        UsageError: a group matches no variable.
    """
    found = [next((g for g in train.groups if re.search(g.match, v.path)), None) for v in variables]
    for number, group in enumerate(train.groups):
        if not any(group is each for each in found):
            paths = [variable.path for variable in variables]
            raise UsageError(
                f"{group.match!r} matches no trainable weight that is not in an earlier group",
                key=f"train.groups.{number}",
                allowed=f"must match some of {len(paths)}, such as {', '.join(_spread(paths, 6))}",
            )
    own = [Scale(group.lr_scale, group.weight_decay_scale) if group else Scale() for group in found]
    below = _stages_below_head(variables)
    return [
        each._replace(lr=each.lr * train.layer_decay**depth)
        for each, depth in zip(own, below, strict=True)
    ]


def _spread(items: Sequence[str], count: int) -> list[str]:
    """Returns at most `count` items, evenly spaced over a sequence."""
    return list(items[:: math.ceil(len(items) / count)])


def _stages_below_head(variables: Sequence[Any]) -> list[int]:
    """Returns each variable's number of stages below the head: 0 in the head, most in the stem."""
    stages = [stage_of(variable.path) for variable in variables]
    numbers = {s: int(s.removeprefix("stage")) for s in stages if s.startswith("stage")}
    head = max(numbers.values(), default=0) + 1
    numbers["stem"] = 0
    return [head - numbers.get(stage, head) for stage in stages]


def _with_scales(optimizer: Any, variables: Sequence[Any], scales: Sequence[Scale]) -> Any:
    """Returns a copy of an optimizer with a learning rate and weight decay for each variable.

    This is exact for all optimizers here: each takes the learning rate as an argument of
    `update_step`.
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
    scaled.weight_decay = None  # Keras would apply it with one learning rate for all
    return scaled
