"""LeNet-5: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", fig. 2."""

from __future__ import annotations

from typing import Literal

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import Activation, activate, logits
from cnnbench.registry.kinds import MODELS
from cnnbench.registry.limits import Rate


@MODELS.register(
    "lenet5",
    family="lenet",
    source="LeCun et al. 1998, fig. 2; C3 fully connected",
    params=61_706,
    macs=416_520,
    native=(32, 32, 1),
    native_classes=10,
    min_size=16,
)
def lenet5(
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    activation: Activation = "tanh",
    pool: Literal["average", "max"] = "average",
    dropout: Rate = 0.0,
) -> keras.Model:
    """Two convolutions with pooling and three dense layers.

    Deviations: every map of C3 is connected to all maps of S2 (the paper connects only some), and
    the output is a dense layer of logits instead of radial basis functions.
    """
    pooling = {"average": keras.layers.AveragePooling2D, "max": keras.layers.MaxPooling2D}[pool]
    x = inputs = keras.Input(input_shape, name="images")
    for stage, filters in enumerate((6, 16), start=1):
        x = keras.layers.Conv2D(filters, 5, name=f"stage{stage}_conv")(x)
        x = activate(x, activation, f"stage{stage}_act")
        x = pooling(2, name=f"stage{stage}_pool")(x)
    x = keras.layers.Flatten(name="head_flatten")(x)
    for i, units in enumerate((120, 84), start=1):
        x = keras.layers.Dense(units, name=f"head_dense{i}")(x)
        x = activate(x, activation, f"head_act{i}")
    return keras.Model(inputs, logits(x, classes, dropout), name="lenet5")
