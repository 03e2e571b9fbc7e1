"""Test-time augmentation: the mean of a network's answers to several views of an image.

A task serves it if the mean of answers is an answer, which is so of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnbench.backend.lazy import tf

Answer = Callable[[Any], Any]


def none(answer: Answer, images: Any) -> Any:
    """Returns the answer to the images as they are.

    Args:
        answer: from (batch, height, width, channels) to the network's output.
        images: (batch, height, width, channels) uint8, or float in 0-255.
    """
    return answer(images)


def flip(answer: Answer, images: Any) -> Any:
    """Returns the mean of the answers to each image and its mirror.

    Args: as for none.
    """
    return (answer(images) + answer(tf.reverse(images, (2,)))) / 2


def flip_shift(answer: Answer, images: Any) -> Any:
    """Returns the mean of `flip` of the images, and of two translates of them.

    Half the weight is on the images, a quarter on each translate: by one pixel down and right, and
    by one up and left, with the border reflected (Jordan 2024, arXiv:2404.00498, multi-crop).

    Args: as for none; at least 2x2 pixels.
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
