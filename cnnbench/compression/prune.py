"""Magnitude pruning: the smallest weights are set to zero and stay zero as training goes on.

Kernels are multiplied by binary masks after each update, so that pruned weights stay zero whatever
the optimizer does (Zhu & Gupta 2017, "To Prune, or Not to Prune", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cnnbench.backend.lazy import keras, tf

Scope = Literal["layer", "global"]

# The 2:4 pattern keeps two of every four consecutive weights.
BLOCK, KEPT = 4, 2


def sparsity_at(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """Returns the target sparsity at a step (Zhu & Gupta 2017, equation 1).

    It rises from `initial` at `begin` to `final` at `end`, quickly at first and then more slowly,
    and is constant before and after. Pruning at intervals samples this curve.
    """
    if step < begin:
        return initial
    if step >= end:
        return final
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


def prunable(model: Any) -> list[Any]:
    """Returns the kernels to prune: those of convolutions and dense layers.

    The first layer and depthwise convolutions are excluded: they have few weights, and each matters
    (Zhu & Gupta 2017 on MobileNet; Gale et al. 2019, "The State of Sparsity in Deep Neural
    Networks", on ResNet). As in those papers, the layer of the logits is pruned, because in
    ImageNet networks it has too many weights to exclude. Biases, norms and frozen kernels are not
    pruned.
    """
    kinds = keras.layers.Conv2D | keras.layers.Dense
    layers = [layer for layer in model.layers if isinstance(layer, kinds)]
    return [layer.kernel for layer in layers[1:] if layer.kernel.trainable]


def masks_like(kernels: Sequence[Any]) -> list[Any]:
    """Returns a mask of ones for each kernel, a variable of its shape and dtype."""
    return [
        keras.Variable("ones", k.shape, k.dtype, trainable=False, name=k.path.replace("/", "_"))
        for k in kernels
    ]


def update(kernels: Sequence[Any], masks: Sequence[Any], sparsity: Any, scope: Scope) -> None:
    """Masks the weights of smallest magnitude; does not change the kernels.

    Exactly round(sparsity * count) weights are masked, or as many as already were if that is more.
    Ties mask the first weights. A masked weight stays masked, whatever the optimizer has done to it
    since.

    Args:
        kernels: from `prunable`.
        masks: one per kernel.
        sparsity: scalar in [0, 1].
        scope: "layer" prunes the same fraction of each kernel, as in Zhu & Gupta 2017; "global"
            ranks the weights of all kernels together (Han et al. 2015 rank within a layer), which
            spares small layers but can remove a layer entirely at high sparsity.
    """
    flat = [tf.reshape(_ranked(*pair), (-1,)) for pair in zip(kernels, masks, strict=True)]
    if scope == "global":
        kept = tf.split(_largest(tf.concat(flat, 0), sparsity), [len(each) for each in flat])
    else:
        kept = [_largest(each, sparsity) for each in flat]
    for mask, values in zip(masks, kept, strict=True):
        mask.assign(mask * tf.cast(tf.reshape(values, mask.shape), mask.dtype))


def update_two_of_four(kernels: Sequence[Any], masks: Sequence[Any]) -> None:
    """Keeps the two largest of every four consecutive weights along the input channels.

    Sparse tensor cores compute this pattern at twice the speed (Mishra et al. 2021, "Accelerating
    Sparse Deep Neural Networks", section 3; there, a trained network is pruned once and then
    retrained). Kernels whose number of input channels is not a multiple of four are not pruned.
    Ties keep the first weights. A masked weight stays masked, even if that leaves fewer than two.
    """
    for kernel, mask in zip(kernels, masks, strict=True):
        *window, channels, filters = kernel.shape
        if channels % BLOCK:
            continue
        ranked = tf.reshape(_ranked(kernel, mask), (-1, BLOCK, filters))
        _, places = tf.math.top_k(tf.transpose(ranked, (0, 2, 1)), KEPT)
        kept = tf.reduce_sum(tf.one_hot(places, BLOCK, dtype=mask.dtype), -2)
        kept = tf.reshape(tf.transpose(kept, (0, 2, 1)), (*window, channels, filters))
        mask.assign(mask * kept)


def apply(kernels: Sequence[Any], masks: Sequence[Any]) -> None:
    """Sets the masked weights to zero."""
    for kernel, mask in zip(kernels, masks, strict=True):
        kernel.assign(kernel * mask)


def sparsity_of(model: Any) -> tuple[float, dict[str, float]]:
    """Returns the fraction of zeros in all prunable kernels, and in each kernel by its path."""
    kernels = {kernel.path: keras.ops.convert_to_numpy(kernel) for kernel in prunable(model)}
    zeros = {path: int(np.sum(values == 0)) for path, values in kernels.items()}
    total = sum(values.size for values in kernels.values())
    each = {path: zeros[path] / values.size for path, values in kernels.items()}
    return sum(zeros.values()) / max(total, 1), each


def _ranked(kernel: Any, mask: Any) -> Any:
    """Returns magnitudes, with -1 for masked weights, which ranks them last."""
    return tf.where(mask.value > 0, tf.abs(kernel.value), -1.0)


def _largest(magnitudes: Any, sparsity: Any) -> Any:
    """Returns whether each magnitude survives pruning to a sparsity, (count,) bool."""
    count = math.prod(magnitudes.shape)
    pruned = tf.cast(tf.round(tf.cast(sparsity, tf.float64) * count), tf.int32)
    order = tf.argsort(magnitudes, stable=True)
    return tf.scatter_nd(order[:, None], tf.range(count) >= pruned, (count,))
