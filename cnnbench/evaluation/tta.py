"""Test-time augmentation: one answer from what a network says of several views of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnbench.backend.lazy import tf

LogitsOf = Callable[[Any], Any]


def none(logits_of: LogitsOf, images: Any) -> Any:
    """Returns the logits of the images as they are.

    Args:
        logits_of: from (batch, height, width, channels) to (batch, classes).
        images: (batch, height, width, channels) uint8, or float in 0-255.
    """
    return logits_of(images)


def flip(logits_of: LogitsOf, images: Any) -> Any:
    """Returns the mean of the logits of each image and its mirror.

    Args: as for none.
    """
    return (logits_of(images) + logits_of(tf.reverse(images, (2,)))) / 2


def flip_shift(logits_of: LogitsOf, images: Any) -> Any:
    """Returns the mean of `flip` of the images, and of two translates of them.

    Half the weight is on the images, a quarter on each translate: by one pixel down and right, and
    by one up and left, with the border reflected (Jordan 2024, arXiv:2404.00498, multi-crop).

    Args: as for none; at least 2x2 pixels.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "REFLECT")
    translates = (padded[:, start : start + height, start : start + width] for start in (0, 2))
    shifted = sum(flip(logits_of, translate) for translate in translates) / 2
    return (flip(logits_of, images) + shifted) / 2


TTA: dict[str, Callable[[LogitsOf, Any], Any]] = {
    "none": none,
    "flip": flip,
    "flip_shift": flip_shift,
}
