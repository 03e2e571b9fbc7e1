"""Quantization to 8-bit integers, by training or calibration, for export to TFLite.

Batch norms are folded, and kernels and activations rounded, as in Jacob et al. 2018, "Quantization
and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", and Krishnamoorthi
2018, "Quantizing deep convolutional networks for efficient inference". Which tensors have a range,
and which must share one, follows TFLite's 8-bit quantization specification.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cnnbench.backend.lazy import keras
from cnnbench.compression.graph import copied, inputs_of, rebuilt, users
from cnnbench.errors import UsageError

# Class names of layers with a kernel.
KERNELS = frozenset({"Conv2D", "FastConv2D", "DepthwiseConv2D", "Dense"})
# Class names of layers whose output needs a range of its own.
COMPUTES = KERNELS | {"Add", "Multiply", "GlobalAveragePooling2D", "Rescaling"}
# Class names of layers whose output keeps the range of the input; several inputs share one range.
KEEPS_RANGE = frozenset(
    {
        "AveragePooling2D",
        "Concatenate",
        "Cropping2D",
        "Dropout",
        "Flatten",
        "GlobalMaxPooling2D",
        "MaxPooling2D",
        "Reshape",
        "UpSampling2D",
        "ZeroPadding2D",
    }
)
# Activations fused into the preceding operation if nothing else takes its output.
FUSED = frozenset({"relu", "relu6"})
# Activations whose output range is learned.
LEARNED = FUSED | {"gelu", "hard_silu", "leaky_relu", "silu"}
# Activations whose output range is known.
KNOWN = frozenset({"hard_sigmoid", "sigmoid", "tanh"})


def fold_batch_norms(model: Any) -> Any:
    """Returns a copy without batch norms that computes the same in inference.

    A batch norm that is the only user of a convolution or dense layer is folded into its kernel and
    bias (Jacob et al. 2018, equation 14). Any other one on feature maps becomes a 1x1 depthwise
    convolution.
    """
    norms = _foldable(model)
    folded = {norm.name for norm in norms.values()}

    def make(layer: Any, x: Any) -> Any:
        if layer.name in folded:
            return x
        if layer.name in norms:
            config = layer.get_config() | {"use_bias": True}
            return _with_weights(
                type(layer).from_config(config), x, _folded(layer, norms[layer.name])
            )
        if isinstance(layer, keras.layers.BatchNormalization) and len(x.shape) == 4:
            scale, shift = _scale_and_shift(layer)
            kept = {key: layer.get_config()[key] for key in ("name", "trainable", "dtype")}
            affine = keras.layers.DepthwiseConv2D(1, **kept)
            return _with_weights(affine, x, [scale.reshape(1, 1, -1, 1), shift])
        return copied(layer, x)

    return rebuilt(model, make)


def quantizable(model: Any) -> list[str]:
    """Returns the layers that cannot be quantized, each as "name (kind)"; empty if all can."""
    problems = []
    after = {norm.name for norm in _foldable(model).values()}
    for layer in model.layers:
        kind, function = type(layer).__name__, _function(layer)
        is_known = isinstance(layer, keras.layers.InputLayer) or kind in COMPUTES | KEEPS_RANGE
        if isinstance(layer, keras.layers.BatchNormalization):
            is_known = layer.name in after or len(layer.output.shape) == 4
        elif kind == "Activation":
            is_known, kind = function in LEARNED | KNOWN | {"linear"}, function
        elif kind in KERNELS and function != "linear":
            is_known, kind = False, f"{kind} with {function}"
        elif kind == "UpSampling2D" and layer.interpolation != "nearest":
            is_known, kind = False, f"{kind}, {layer.interpolation}"
        if not is_known:
            problems.append(f"{layer.name} ({kind})")
    if problems:
        return problems
    points, _ = _points(model)
    by_name = {layer.name: layer for layer in model.layers}
    return [
        f"{name} ({_function(by_name[name])} in a concatenation)"
        for name, group in points.items()
        if len(group) > 1 and _function(by_name[name]) in KNOWN
    ]


def fake_quantized(model: Any, *, bits: int = 8) -> Any:
    """Returns a float32 copy that simulates integer arithmetic, to be trained or calibrated.

    Batch norms are folded. Kernels are rounded with one symmetric range per output channel.
    Activations and images are rounded with one range per tensor, which moves during training; see
    cnnbench.compression.fake_quant. Gradients pass straight through the rounding.

    Args:
        model: functional, from normalized images to logits; the copy has its weights.
        bits: bits of the integers; 8 in TFLite.

    Raises:
        UsageError: a layer cannot be quantized.
    """
    from cnnbench.compression import fake_quant

    if problems := quantizable(model):
        raise UsageError(f"{model.name} cannot be quantized: {', '.join(problems)}")
    kinds = {
        "Conv2D": fake_quant.FakeQuantConv2D,
        "FastConv2D": fake_quant.FakeQuantConv2D,
        "DepthwiseConv2D": fake_quant.FakeQuantDepthwiseConv2D,
        "Dense": fake_quant.FakeQuantDense,
    }
    folded = fold_batch_norms(model)
    points, source = _points(folded)
    ranges: dict[str, Any] = {}

    def make(layer: Any, x: Any) -> Any:
        kind, function, name = type(layer).__name__, _function(layer), layer.name
        if kind in KERNELS:
            y = copied(layer, x, kinds[kind], bits=bits, dtype="float32")
        elif kind == "Activation" and function in _DECOMPOSED:
            y = _DECOMPOSED[function](x, name, bits)
        else:
            y = copied(layer, x, dtype="float32")
        if kind == "AveragePooling2D":  # a mean of grid values may be off the grid
            return ranges[source[name]](y)
        if name not in points:
            return y
        if function in KNOWN:
            ranges[name] = _known_range(function, name, bits)
            return ranges[name](y)
        group = points[name]
        if name not in ranges:
            options = {"name": f"{group[0]}_range", "bits": bits, "dtype": "float32"}
            ranges.update(dict.fromkeys(group, fake_quant.MovingRange(len(group), **options)))
        return ranges[name](y, member=group.index(name))

    return rebuilt(folded, make)


def is_fake_quantized(model: Any) -> bool:
    """Returns whether a model comes from `fake_quantized`."""
    return bool(moving_ranges(model))


def calibrate(model: Any, batches: Iterable[Any]) -> None:
    """Sets each range to its mean over some batches; the weights do not change.

    Args:
        model: from `fake_quantized`.
        batches: at least one batch of normalized images, (batch, height, width, channels) float32.
    """
    moving = moving_ranges(model)
    try:
        for count, images in enumerate(batches, start=1):
            for each in moving:
                each.share = 1 / count
            model(images, training=False)
    finally:
        for each in moving:
            each.share = None


def _foldable(model: Any) -> dict[str, Any]:
    """Returns the batch norms to fold, by the name of the layer that each is folded into."""
    by_name, taken = {layer.name: layer for layer in model.layers}, users(model)
    found = {}
    for norm in model.layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            (name,) = inputs_of(norm)
            has_kernel = type(by_name[name]).__name__ in KERNELS
            if has_kernel and _function(by_name[name]) == "linear" and taken[name] == [norm.name]:
                found[name] = norm
    return found


def _scale_and_shift(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch norm's scale and shift in inference, (channels,) float64 each."""
    mean, variance, gamma, beta = (
        np.asarray(weight, np.float64)
        for weight in (
            norm.moving_mean,
            norm.moving_variance,
            norm.gamma if norm.scale else 1.0,
            norm.beta if norm.center else 0.0,
        )
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def _folded(layer: Any, norm: Any) -> list[np.ndarray]:
    """Returns a layer's kernel and bias with the following batch norm folded in."""
    kernel, *bias = layer.get_weights()
    scale, shift = _scale_and_shift(norm)
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    outputs = kernel.shape[2:] if is_depthwise else kernel.shape[-1:]
    return [kernel * scale.reshape(outputs), (bias[0] if bias else 0.0) * scale + shift]


def _with_weights(layer: Any, x: Any, weights: list[np.ndarray]) -> Any:
    """Calls a new layer, sets its weights, and returns its output."""
    y = layer(x)
    layer.set_weights(weights)
    return y


def _function(layer: Any) -> str:
    """Returns Keras's name of a layer's activation."""
    function = getattr(layer, "activation", keras.activations.linear)
    return str(keras.activations.serialize(function))


def _points(model: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Finds the layers whose outputs need a range.

    Returns:
        For each such layer by name, the layers that share its range because their outputs are
        concatenated; and for every layer by name, the layer that its output gets its range from.
    """
    by_name, taken = {layer.name: layer for layer in model.layers}, users(model)
    points: dict[str, list[str]] = {}
    source: dict[str, str] = {}
    for layer in model.layers:
        name, kind = layer.name, type(layer).__name__
        user = by_name.get(taken[name][0]) if len(taken[name]) == 1 else None
        is_fused = type(user).__name__ == "Activation" and _function(user) in FUSED
        if kind in KEEPS_RANGE or (kind == "Activation" and _function(layer) == "linear"):
            sources = [source[each] for each in inputs_of(layer)]
            source[name] = sources[0]
            shared = list(dict.fromkeys(point for each in sources for point in points[each]))
            points |= dict.fromkeys(shared, shared)
        elif not (is_fused and kind in KERNELS | {"Add", "Multiply"}):
            points[name], source[name] = [name], name
    return points, source


def _known_range(function: str, name: str, bits: int) -> Any:
    """Returns the range of an activation's output; TFLite prescribes those of sigmoid and tanh."""
    from cnnbench.compression.fake_quant import FixedRange

    low, high = {
        "sigmoid": (0.0, 1 - 2.0**-bits),
        "tanh": (-1.0, 1 - 2.0 ** (1 - bits)),
        "hard_sigmoid": (0.0, 1.0),
        "relu6": (0.0, 6.0),
    }[function]
    return FixedRange(low, high, bits=bits, name=f"{name}_range", dtype="float32")


def _silu(x: Any, name: str, bits: int) -> Any:
    gate = keras.layers.Activation("sigmoid", name=f"{name}_gate", dtype="float32")(x)
    gate = _known_range("sigmoid", f"{name}_gate", bits)(gate)
    return keras.layers.Multiply(name=name, dtype="float32")([x, gate])


def _hard_sigmoid(x: Any, name: str, bits: int) -> Any:
    x = keras.layers.Rescaling(1.0, 3.0, name=f"{name}_shift", dtype="float32")(x)
    x = keras.layers.Activation("relu6", name=f"{name}_relu6", dtype="float32")(x)
    x = _known_range("relu6", f"{name}_relu6", bits)(x)
    return keras.layers.Rescaling(1 / 6, name=name, dtype="float32")(x)


# Activations without an integer operation in TFLite.
_DECOMPOSED = {"silu": _silu, "hard_sigmoid": _hard_sigmoid}


def moving_ranges(model: Any) -> list[Any]:
    """Returns the layers of a prepared network that record the range of activations."""
    from cnnbench.compression.fake_quant import MovingRange

    return [layer for layer in model.layers if isinstance(layer, MovingRange)]
