"""NASNet-A: Zoph et al. 2018, "Learning Transferable Architectures for Scalable Image Recognition".

The cells are those of figure 4, arranged as in figure 2; the auxiliary classifier is that of the
authors' code, after Szegedy et al. 2014, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from cnnbench.backend.lazy import keras
from cnnbench.models.layers import blocks
from cnnbench.models.layers.blocks import (
    HE_FAN_OUT,
    Activation,
    activate,
    classifier,
    conv,
    depthwise,
    drop_path,
)
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Rate

MaxPoolPadding = Literal["zeros", "excluded"]


class Operation(NamedTuple):
    """An operation of a cell on one of its states.

    State 0 is the cell's input, 1 the input of the previous cell, 2 and above the sums so far.
    """

    state: int
    kind: Literal["separable", "max", "average", "identity"]
    kernel: int = 3


class Cell(NamedTuple):
    """Pairs of operations whose results are added, and the states concatenated as the output."""

    sums: tuple[tuple[Operation, Operation], ...]
    output: tuple[int, ...]
    strides: int


# Figure 4, in the order of the authors' code.
NORMAL = Cell(
    sums=(
        (Operation(0, "separable", 5), Operation(1, "separable", 3)),
        (Operation(1, "separable", 5), Operation(1, "separable", 3)),
        (Operation(0, "average"), Operation(1, "identity")),
        (Operation(1, "average"), Operation(1, "average")),
        (Operation(0, "separable", 3), Operation(0, "identity")),
    ),
    output=(1, 2, 3, 4, 5, 6),
    strides=1,
)
REDUCTION = Cell(
    sums=(
        (Operation(0, "separable", 5), Operation(1, "separable", 7)),
        (Operation(0, "max"), Operation(1, "separable", 7)),
        (Operation(0, "average"), Operation(1, "separable", 5)),
        (Operation(3, "identity"), Operation(2, "average")),
        (Operation(2, "separable", 3), Operation(0, "max")),
    ),
    output=(3, 4, 5, 6),
    strides=2,
)


class Variant(NamedTuple):
    """NASNet-A (N @ P): N normal cells in each of three stages, and P filters at the end."""

    cells: int
    filters: int
    stem_filters: int
    size: int
    # Whether the normal cell after a reduction has the same previous input as the reduction.
    skips_reduction: bool = False


# Tables 1 to 3, and the authors' code.
VARIANTS = {
    "nasnet_mobile": Variant(4, 1056, 32, 224),
    "nasnet_large": Variant(6, 4032, 96, 331, skips_reduction=True),
    "nasnet_cifar": Variant(6, 768, 96, 32),
}
CIFAR = ("nasnet_cifar",)
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "nasnet_mobile": (5_289_978, 563_638_816),
    "nasnet_large": (88_753_150, 23_783_414_658),
    "nasnet_cifar": (3_328_234, 525_786_624),
}


imagenet_norm = partial(blocks.norm, epsilon=1e-3, momentum=0.9997)
cifar_norm = partial(blocks.norm, epsilon=1e-5, momentum=0.9)


def nasnet(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    activation: Activation = "relu",
    dropout: Rate = 0.5,
    drop_path_rate: Rate = 0.0,
    auxiliary_weight: Rate = 0.0,
    max_pool_padding: MaxPoolPadding = "zeros",
) -> keras.Model:
    """NASNet-A; the ImageNet variants have two reduction cells in the stem.

    `drop_path_rate` is the rate at which each operation of the last cell is dropped; it is
    proportionally lower in earlier cells. Deviation: the rate is constant, while the authors
    increase it during training from 0 to 0.4 for nasnet_cifar and 0.3 for nasnet_large; they report
    little benefit from a constant rate.

    `auxiliary_weight` is the loss weight of an auxiliary classifier after stage 2, which is only
    used in training; the authors use 0.4. If it is not 0, the model's outputs are [logits,
    auxiliary logits].

    `max_pool_padding` is what pads strided max pooling: "zeros" takes part, as in
    keras.applications; "excluded" does not, as in timm and the authors' code.

    The first cell of nasnet_cifar adapts the width of the stem with one 1x1 convolution, while the
    authors' code has one in each operation; the paper does not specify this.
    """
    cells, filters, stem_filters, _, skips_reduction = VARIANTS[name]
    # A normal cell concatenates six states, and the filters double twice.
    filters //= 24
    total = 3 * cells + (2 if name in CIFAR else 4)
    rates = (drop_path_rate * i / total for i in range(1, total + 1))
    norm = cifar_norm if name in CIFAR else imagenet_norm
    build = partial(cell, activation=activation, norm=norm, max_pool_padding=max_pool_padding)
    x = inputs = keras.Input(input_shape, name="images")
    if name in CIFAR:
        x = previous = norm(conv(x, stem_filters, 3, "stem_conv"), "stem_norm")
    else:
        x = norm(unpadded_conv(x, stem_filters, 3, "stem_conv", strides=2), "stem_norm")
        y = build(x, None, REDUCTION, filters // 4, next(rates), "stem_cell1")
        x, previous = build(y, x, REDUCTION, filters // 2, next(rates), "stem_cell2"), y
    for stage in (1, 2, 3):
        kinds = [NORMAL] * cells if stage == 1 else [REDUCTION, *[NORMAL] * cells]
        for i, kind in enumerate(kinds, start=1):
            y = build(x, previous, kind, filters, next(rates), f"stage{stage}_block{i}")
            if kind is NORMAL or not skips_reduction:
                previous = x
            x = y
        if stage == 2 and auxiliary_weight:
            auxiliary = auxiliary_classifier(x, classes, activation, norm)
        filters *= 2
    x = activate(x, activation, "head_act")
    outputs = classifier(x, classes, dropout)
    return keras.Model(inputs, [outputs, auxiliary] if auxiliary_weight else outputs, name=name)


def auxiliary_classifier(
    x: Any, classes: int, activation: Activation, norm: Callable[..., Any]
) -> Any:
    """5x5 average pooling, a 1x1 and a full-map convolution, and float32 logits."""
    x = activate(x, activation, "auxiliary_act1")
    x = keras.layers.AveragePooling2D(5, 3, name="auxiliary_pool")(x)
    x = norm(conv(x, 128, 1, "auxiliary_conv1"), "auxiliary_norm1")
    x = activate(x, activation, "auxiliary_act2")
    x = norm(unpadded_conv(x, 768, x.shape[1:3], "auxiliary_conv2"), "auxiliary_norm2")
    x = keras.layers.Flatten(name="auxiliary_flatten")(activate(x, activation, "auxiliary_act3"))
    return keras.layers.Dense(classes, dtype="float32", name="auxiliary_logits")(x)


def unpadded_conv(
    x: Any, filters: int, kernel: int | tuple[int, int], name: str, *, strides: int = 1
) -> Any:
    """Applies a convolution without padding or bias."""
    return keras.layers.Conv2D(
        filters,
        kernel,
        strides,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(**HE_FAN_OUT),
        name=name,
    )(x)


def cell(
    x: Any,
    previous: Any | None,
    kind: Cell,
    filters: int,
    drop_rate: float,
    name: str,
    *,
    activation: Activation,
    norm: Callable[..., Any],
    max_pool_padding: MaxPoolPadding,
) -> Any:
    """Applies a cell to its input x and the previous cell's input, which is x if None."""
    h = conv(activate(x, activation, f"{name}_act"), filters, 1, f"{name}_conv")
    h = norm(h, f"{name}_norm")
    if previous is None:
        previous = x
    else:
        previous = fit(previous, x, filters, f"{name}_previous", activation, norm)
    states = [h, previous]
    for i, pair in enumerate(kind.sums, start=1):
        terms = []
        for side, operation in zip(("left", "right"), pair, strict=True):
            term = states[operation.state]
            # The sums (states 2 and above) are already reduced.
            strides = kind.strides if operation.state < 2 else 1
            part = f"{name}_{side}{i}"
            if operation.kind == "separable":
                term = separable(term, filters, operation.kernel, strides, part, activation, norm)
            elif operation.kind != "identity":
                term = pool(term, operation.kind, strides, part, max_pool_padding)
            if operation.kind != "identity":
                term = drop_path(term, drop_rate, f"{part}_drop")
            terms.append(term)
        states.append(keras.layers.Add(name=f"{name}_add{i}")(terms))
    return keras.layers.Concatenate(name=f"{name}_concat")([states[i] for i in kind.output])


def fit(
    previous: Any, x: Any, filters: int, name: str, activation: Activation, norm: Callable[..., Any]
) -> Any:
    """Adapts the previous cell's input to the height and width of x and to `filters`.

    To halve the size, half of the filters see every second pixel, and the other half see the pixels
    one below and to the right of those.
    """
    if previous.shape[1:3] != x.shape[1:3]:
        h = activate(previous, activation, f"{name}_act")
        shifted = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_pad")(h)
        shifted = keras.layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_crop")(shifted)
        halves = [
            conv(h, filters // 2, 1, f"{name}_conv1", strides=2),
            conv(shifted, filters // 2, 1, f"{name}_conv2", strides=2),
        ]
        h = keras.layers.Concatenate(name=f"{name}_concat")(halves)
    elif previous.shape[-1] != filters:
        h = conv(activate(previous, activation, f"{name}_act"), filters, 1, f"{name}_conv")
    else:
        return previous
    return norm(h, f"{name}_norm")


def separable(
    x: Any,
    filters: int,
    kernel: int,
    strides: int,
    name: str,
    activation: Activation,
    norm: Callable[..., Any],
) -> Any:
    """Two separable convolutions, the first of which has the strides."""
    for i, s in enumerate((strides, 1), start=1):
        x = depthwise(
            activate(x, activation, f"{name}_act{i}"), kernel, f"{name}_depthwise{i}", strides=s
        )
        x = norm(conv(x, filters, 1, f"{name}_pointwise{i}"), f"{name}_norm{i}")
    return x


def pool(x: Any, kind: str, strides: int, name: str, max_pool_padding: MaxPoolPadding) -> Any:
    """Applies 3x3 pooling; with strides, the zero padding takes part, see `nasnet` for the maximum.

    This follows keras.applications. The authors' code excludes the padding.
    """
    pooling = {"max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D}[kind]
    if strides == 1 or (kind == "max" and max_pool_padding == "excluded"):
        return pooling(3, strides, "same", name=name)(x)
    # TensorFlow's "same" padding: an even size is padded only at the bottom and right.
    padding = tuple((size % 2, 1) for size in x.shape[1:3])
    x = keras.layers.ZeroPadding2D(padding, name=f"{name}_pad")(x)
    return pooling(3, strides, name=name)(x)


def smallest_input(name: str, options: dict[str, Any]) -> int:
    """Returns the smallest image size in pixels; the auxiliary classifier needs 5x5 at stage 2."""
    if options["auxiliary_weight"]:
        return 9 if name in CIFAR else 80
    return 4 if name in CIFAR else 32


for _name, _variant in VARIANTS.items():
    add_model(
        _name,
        partial(nasnet, _name, dropout=0.0 if _name in CIFAR else 0.5),
        COUNTS[_name],
        family="nasnet",
        source="Zoph et al. 2018, figure 4 and tables 1 to 3",
        native=(_variant.size, _variant.size, 3),
        classes=10 if _name in CIFAR else 1000,
        min_size=partial(smallest_input, _name),
    )
