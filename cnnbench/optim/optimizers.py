"""Optimizers, by the names that recipes use."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbench.backend.lazy import keras
from cnnbench.registry.kinds import OPTIMIZERS
from cnnbench.registry.limits import Factor, NonNegative, Positive, Rate

Velocity = Annotated[
    Literal["steps", "gradients"],
    Field(
        description="what it sums: steps at the rate of their time (Keras, Caffe, MXNet), or "
        "gradients (PyTorch, Torch 7, TensorFlow 1); they differ when the rate changes"
    ),
]


@OPTIMIZERS.register("sgd")
def sgd(
    *,
    lr: Positive,
    momentum: Rate = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    velocity: Velocity = "steps",
) -> Any:
    """Stochastic gradient descent, by default without momentum."""
    kind = keras.optimizers.SGD
    if velocity == "gradients":
        from cnnbench.optim.variants import SGD

        kind = SGD
    return kind(lr, momentum, nesterov, weight_decay=weight_decay or None)


@OPTIMIZERS.register("momentum")
def momentum(
    *,
    lr: Positive,
    momentum: Rate = 0.9,
    weight_decay: NonNegative = 0.0,
    velocity: Velocity = "steps",
) -> Any:
    """SGD with momentum (Polyak 1964)."""
    return sgd(lr=lr, momentum=momentum, weight_decay=weight_decay, velocity=velocity)


@OPTIMIZERS.register("nesterov")
def nesterov(
    *,
    lr: Positive,
    momentum: Rate = 0.9,
    weight_decay: NonNegative = 0.0,
    velocity: Velocity = "steps",
) -> Any:
    """SGD with Nesterov momentum (Sutskever et al. 2013)."""
    return sgd(
        lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay, velocity=velocity
    )


@OPTIMIZERS.register("adagrad")
def adagrad(
    *,
    lr: Positive,
    weight_decay: NonNegative = 0.0,
    epsilon: Positive = 1e-7,
    initial: Annotated[
        NonNegative,
        Field(description="first sum of squares: TensorFlow's is 0.1, the paper's and PyTorch's 0"),
    ] = 0.1,
) -> Any:
    """Adagrad (Duchi et al. 2011)."""
    return keras.optimizers.Adagrad(lr, initial, epsilon, weight_decay=weight_decay or None)


@OPTIMIZERS.register("rmsprop")
def rmsprop(
    *,
    lr: Positive,
    rho: Rate = 0.9,
    momentum: Rate = 0.0,
    weight_decay: NonNegative = 0.0,
    epsilon: Positive = 1e-7,
    initial: Annotated[
        NonNegative,
        Field(description="first mean square: TensorFlow 1's is 1, Keras's and PyTorch's 0"),
    ] = 0.0,
) -> Any:
    """RMSProp (Tieleman & Hinton 2012), with epsilon inside the root."""
    from cnnbench.optim.variants import RMSprop

    return RMSprop(
        lr, rho, momentum, epsilon=epsilon, initial=initial, weight_decay=weight_decay or None
    )


@OPTIMIZERS.register("adam")
def adam(
    *, lr: Positive, beta_1: Rate = 0.9, beta_2: Rate = 0.999, epsilon: Positive = 1e-7
) -> Any:
    """Adam (Kingma & Ba 2015)."""
    return keras.optimizers.Adam(lr, beta_1, beta_2, epsilon)


@OPTIMIZERS.register("adamw")
def adamw(
    *,
    lr: Positive,
    weight_decay: NonNegative = 0.01,
    beta_1: Rate = 0.9,
    beta_2: Rate = 0.999,
    epsilon: Positive = 1e-7,
) -> Any:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return keras.optimizers.AdamW(lr, weight_decay, beta_1, beta_2, epsilon)


@OPTIMIZERS.register("lion")
def lion(
    *,
    lr: Positive,
    weight_decay: NonNegative = 0.0,
    beta_1: Factor = 0.9,
    beta_2: Rate = 0.99,
) -> Any:
    """Lion, sign-based updates (Chen et al. 2023); needs 1/3 to 1/10 of AdamW's learning rate."""
    return keras.optimizers.Lion(lr, beta_1, beta_2, weight_decay=weight_decay or None)


@OPTIMIZERS.register("lamb")
def lamb(
    *,
    lr: Positive,
    weight_decay: NonNegative = 0.0,
    beta_1: Rate = 0.9,
    beta_2: Rate = 0.999,
    epsilon: Positive = 1e-6,
) -> Any:
    """LAMB for large batches (You et al. 2020), with weight decay outside the trust ratio."""
    return keras.optimizers.Lamb(lr, beta_1, beta_2, epsilon, weight_decay=weight_decay or None)


@OPTIMIZERS.register("lars", decoupled_decay=False)
def lars(
    *,
    lr: Positive,
    momentum: Rate = 0.9,
    weight_decay: NonNegative = 0.0,
    trust: Positive = 0.001,
) -> Any:
    """LARS for large batches (You et al. 2017), with weight decay inside the trust ratio."""
    from cnnbench.optim.lars import Lars

    return Lars(lr, momentum, trust=trust, decay=weight_decay)
