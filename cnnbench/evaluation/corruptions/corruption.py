"""What corruptions share: the choice of constants by severity, and their random draws."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnbench.data.preprocess import LUMA

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

SEVERITIES = (1, 2, 3, 4, 5)
# Images with fewer pixels a side are corrupted as CIFAR-10-C.
LARGE = 64
# Of all draws: whatever the recipe, an example is corrupted in the same way.
KEY = 2**41


def draws(name: str, severity: int, position: int) -> np.random.Generator:
    """Returns the generator for one corruption of the example at a position of its split."""
    counter = (0, zlib.crc32(name.encode()), severity, position)
    return np.random.Generator(np.random.Philox(key=KEY, counter=counter))


def corruption(*, cifar: Sequence[Any], imagenet: Sequence[Any]) -> Callable:
    """Makes a corruption of a function of values in 0-1, a generator and a severity's constants."""

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
    """Returns values in 0-1 as uint8, what is out of range clipped."""
    # Cut off, as the authors do, but never for the last bits of a sum.
    return np.floor(np.clip(x, 0, 1) * 255 + 1e-3).astype(np.uint8)


def grey(x: np.ndarray) -> np.ndarray:
    """Returns the luma of an image in 0-1, (height, width, 1)."""
    return x if x.shape[2] == 1 else (x @ np.array(LUMA, np.float32))[..., None]
