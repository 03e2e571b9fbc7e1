"""Cost of a network: its parameters, and its multiply-accumulates (MACs) per image."""

from __future__ import annotations

import math
from typing import Any

from cnnbench.backend.lazy import keras


def count_params(model: Any) -> int:
    """Returns the number of trainable parameters; batch-norm statistics are not included."""
    return sum(math.prod(v.shape) for v in model.trainable_variables)


def count_macs(model: Any) -> int:
    """Returns the multiply-accumulates of convolutions and dense layers for one image.

    FLOPs are twice as many. As in the papers, normalization, activations, pooling and additions are
    not counted.
    """
    return sum(layer_macs(layer) for layer in model.layers)


def layer_macs(layer: Any) -> int:
    """Returns the multiply-accumulates of one layer of a built model, for one image."""
    layers = keras.layers
    if isinstance(layer, keras.Model):
        return count_macs(layer)
    if isinstance(layer, layers.Dense):
        return math.prod(layer.output.shape[1:]) * layer.kernel.shape[0]
    pixels = math.prod(layer.output.shape[1:-1]) if hasattr(layer, "kernel_size") else 0
    if isinstance(layer, layers.SeparableConv2D):
        return pixels * (
            math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        )
    if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
        # The second to last axis of a kernel is input channels / groups.
        return pixels * math.prod(layer.kernel.shape)
    return 0
