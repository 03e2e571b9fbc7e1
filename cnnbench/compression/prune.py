"""Magnitude pruning: the smallest weights become zeros, and stay so while the others learn on.

Kernels are multiplied by masks of zeros and ones after each update, wherever it moved them, so that
a pruned weight is never seen (Zhu & Gupta 2017, "To Prune, or Not to Prune", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cnnbench.backend.lazy import keras, tf

Scope = Literal["layer", "global"]

# Of every four weights in a row, 2:4 leaves two.
BLOCK, KEPT = 4, 2


def sparsity_at(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """Returns the share of weights that are to be zero at a step (Zhu & Gupta 2017, equation 1).

    From begin to end it goes from initial to final, fast at first and ever slower; before and after
    it stays. To prune every so many steps is to take it at those steps alone.
    """
    if step < begin:
        return initial
    if step >= end:
        return final
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


def prunable(model: Any) -> list[Any]:
    """Returns the kernels that pruning is for: those of convolutions and dense layers.

    The first convolution, which sees the images, and depthwise ones are left out: they hold few
    weights, and each matters much (Zhu & Gupta 2017 on MobileNet; Gale et al. 2019, "The State of
    Sparsity in Deep Neural Networks", on ResNet). The logits are pruned with the rest, as there,
    for in ImageNet's networks they are too many weights to be left. Biases and norms are not
    pruned, nor kernels that are not trained.
    """
    kinds = keras.layers.Conv2D | keras.layers.Dense
    layers = [layer for layer in model.layers if isinstance(layer, kinds)]
    return [layer.kernel for layer in layers[1:] if layer.kernel.trainable]


def masks_like(kernels: Sequence[Any]) -> list[Any]:
    """Returns a mask for each kernel, a variable of its shape that prunes nothing yet."""
    return [
        keras.Variable("ones", k.shape, k.dtype, trainable=False, name=k.path.replace("/", "_"))
        for k in kernels
    ]


def update(kernels: Sequence[Any], masks: Sequence[Any], sparsity: Any, scope: Scope) -> None:
    """Sets the masks to zero for the smallest magnitudes.

    Exactly round(sparsity * count) weights are masked, of equal ones those that come first, or as
    many as there were if those are more. One that was masked stays so, whatever an optimizer has
    done to it since. The kernels themselves are not changed.

    Args:
        kernels: from `prunable`.
        masks: one for each.
        sparsity: scalar, 0-1.
        scope: "layer" prunes the same share of each kernel, as Zhu & Gupta 2017 do; "global"
            compares the weights of all kernels with one another (Han et al. 2015 do so within a
            layer), which spares small layers but can at high sparsities prune one wholly.
    """
    flat = [tf.reshape(_ranked(*pair), (-1,)) for pair in zip(kernels, masks, strict=True)]
    if scope == "global":
        kept = tf.split(_largest(tf.concat(flat, 0), sparsity), [len(each) for each in flat])
    else:
        kept = [_largest(each, sparsity) for each in flat]
    for mask, values in zip(masks, kept, strict=True):
        mask.assign(mask * tf.cast(tf.reshape(values, mask.shape), mask.dtype))


def update_two_of_four(kernels: Sequence[Any], masks: Sequence[Any]) -> None:
    """Keeps the two largest of every four weights in a row along the input channels.

    This is the pattern that sparse tensor cores compute at twice the speed (Mishra et al. 2021,
    "Accelerating Sparse Deep Neural Networks", section 3); there a trained network is pruned once,
    and trained again. A kernel whose input channels are no multiple of four stays as it is. Of
    equal weights the first are kept. One that was masked stays so, if that leaves less than two.
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
    """Returns the share of zeros in all prunable kernels together, and in each by its path."""
    kernels = {kernel.path: keras.ops.convert_to_numpy(kernel) for kernel in prunable(model)}
    zeros = {path: int(np.sum(values == 0)) for path, values in kernels.items()}
    total = sum(values.size for values in kernels.values())
    each = {path: zeros[path] / values.size for path, values in kernels.items()}
    return sum(zeros.values()) / max(total, 1), each


def _ranked(kernel: Any, mask: Any) -> Any:
    """Returns magnitudes, and less than any for what is masked."""
    return tf.where(mask.value > 0, tf.abs(kernel.value), -1.0)


def _largest(magnitudes: Any, sparsity: Any) -> Any:
    """Returns for each of (count,) magnitudes whether it is not among the smallest."""
    count = math.prod(magnitudes.shape)
    pruned = tf.cast(tf.round(tf.cast(sparsity, tf.float64) * count), tf.int32)
    order = tf.argsort(magnitudes, stable=True)
    return tf.scatter_nd(order[:, None], tf.range(count) >= pruned, (count,))
