"""Test-time augmentation: the mean of a network's outputs for several views of an image.

A task supports it if the mean of outputs is a valid output, as it is for logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnbench.backend.lazy import tf

# Maps images to the network's output.
Answer = Callable[[Any], Any]


def none(answer: Answer, images: Any) -> Any:
    """Returns the output for the images as they are.

    Args:
        answer: maps (batch, height, width, channels) to the network's output.
        images: (batch, height, width, channels) uint8, or float in [0, 255].
    """
    return answer(images)


def flip(answer: Answer, images: Any) -> Any:
    """Returns the mean of the outputs for each image and its horizontal mirror image.

    Args: as for `none`.
    """
    return (answer(images) + answer(tf.reverse(images, (2,)))) / 2


def flip_shift(answer: Answer, images: Any) -> Any:
    """Returns the weighted mean of `flip` for the images and two translations of them.

    The images have weight 1/2, and each translation 1/4: one pixel down and right, and one pixel up
    and left, with a reflected border (Jordan 2024, arXiv:2404.00498, multi-crop).

    Args: as for `none`; images must have at least 2x2 pixels.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "REFLECT")
    translates = (padded[:, start : start + height, start : start + width] for start in (0, 2))
    shifted = sum(flip(answer, translate) for translate in translates) / 2
    return (flip(answer, images) + shifted) / 2


TTA: dict[str, Callable[[Answer, Any], Any]] = {
    "none": none,
    "flip": flip,
    "flip_shift": flip_shift,
}
