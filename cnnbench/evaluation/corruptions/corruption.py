"""Code shared by corruptions: constants by severity, and random draws."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnbench.data.preprocess import LUMA

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

SEVERITIES = (1, 2, 3, 4, 5)
# Images whose shorter side has fewer pixels use the constants of CIFAR-10-C.
LARGE = 64
# Key of all random draws; the same for every recipe, so that an example has the same corruptions.
KEY = 2**41


def draws(name: str, severity: int, position: int) -> np.random.Generator:
    """Returns the generator for one corruption of the example at a position of its split."""
    counter = (0, zlib.crc32(name.encode()), severity, position)
    return np.random.Generator(np.random.Philox(key=KEY, counter=counter))


def corruption(*, cifar: Sequence[Any], imagenet: Sequence[Any]) -> Callable:
    """Decorates a function of an image in [0, 1], a generator and constants to make a corruption.

    Args:
        cifar: the constants of each severity for images smaller than LARGE.
        imagenet: the constants of each severity for other images.
    """

    def decorate(function: Callable[..., np.ndarray]) -> Corruption:
        @functools.wraps(function)
        def corrupt(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
            table = imagenet if min(image.shape[:2]) >= LARGE else cifar
            constants = table[severity - 1]
            constants = constants if isinstance(constants, tuple) else (constants,)
            return to_bytes(function(image / np.float32(255), random, *constants))

        return corrupt

    return decorate


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Returns values in [0, 1] as uint8; values out of range are clipped."""
    # Truncated, as by the authors; the small offset absorbs rounding errors of sums.
    return np.floor(np.clip(x, 0, 1) * 255 + 1e-3).astype(np.uint8)


def grey(x: np.ndarray) -> np.ndarray:
    """Returns the luma, (height, width, 1), of an image in [0, 1]."""
    return x if x.shape[2] == 1 else (x @ np.array(LUMA, np.float32))[..., None]
