"""Blur corruptions: defocus, glass, motion and zoom."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import ndimage

from cnnbench.evaluation.corruptions.corruption import corruption, to_bytes


@corruption(
    cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
def defocus_blur(
    x: np.ndarray, random: np.random.Generator, radius: float, sigma: float
) -> np.ndarray:
    """Averages over a disk with a radius of `radius` pixels, its edge smoothed by a Gaussian."""
    return ndimage.correlate(x, _disk(radius, sigma)[:, :, None], mode="mirror")


@corruption(
    cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
def glass_blur(
    x: np.ndarray, random: np.random.Generator, sigma: float, reach: int, rounds: int
) -> np.ndarray:
    """Blurs, replaces pixels by others at most `reach` pixels away, and blurs again."""
    height, width, channels = x.shape
    x = to_bytes(_blurred(x, sigma)) / np.float32(255)
    for _ in range(rounds):
        places = scattered(height, width, reach, random)
        x = x.reshape(-1, channels)[places].reshape(x.shape)
    return _blurred(x, sigma)


@corruption(
    cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
)
def motion_blur(
    x: np.ndarray, random: np.random.Generator, radius: int, sigma: float
) -> np.ndarray:
    """Blurs along a line within 45 degrees of the horizontal; does not use ImageMagick."""
    return along_line(x, radius, sigma, random.uniform(-45, 45))


@corruption(
    cifar=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    imagenet=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
)
def zoom_blur(x: np.ndarray, random: np.random.Generator, stop: float, step: float) -> np.ndarray:
    """Averages the image and its center enlarged by every factor from 1 up to `stop`."""
    factors = np.arange(1, stop, step)
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the center of an image to the image's size, by linear interpolation.

    Equivalent to scipy.ndimage.zoom, but several times faster, as it handles one axis at a time.
    """
    for axis, side in enumerate(x.shape[:2]):
        kept = math.ceil(side / factor)
        places = np.linspace(0, kept - 1, round(kept * factor))
        first = (len(places) - side) // 2
        places = (side - kept) // 2 + places[first : first + side]
        low = places.astype(int)
        high = np.minimum(low + 1, side - 1)
        share = np.float32(places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = (1 - share) * np.take(x, low, axis) + share * np.take(x, high, axis)
    return x


@functools.cache
def _disk(radius: float, sigma: float) -> np.ndarray:
    reach, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    grid = np.arange(-reach, reach + 1)
    disk = np.where(grid[:, None] ** 2 + grid**2 <= radius**2, 1.0, 0.0)
    edge = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, edge / edge.sum(), axis, mode="mirror")
    return disk / disk.sum()


def scattered(height: int, width: int, reach: int, random: np.random.Generator) -> np.ndarray:
    """Returns, for each pixel in row-major order, the index of the pixel that replaces it.

    From the last pixel to the first, each is overwritten by the current value of a random pixel
    near it, which itself stays as it is: this is what the authors' swap of two NumPy views does.
    """
    index = np.arange(height * width).reshape(height, width)
    inside = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    moved, moves = index.copy(), np.zeros((height, width), bool)
    down, right = random.integers(-reach, reach, (2, *index[inside].shape))
    moved[inside] += down * width + right
    moves[inside] = True
    source = moved.ravel()
    # The source may itself have been overwritten before; follow it to the original pixel.
    indirect = (source > index.ravel()) & moves.ravel()[source]
    while indirect.any():
        source, indirect = (
            np.where(indirect, source[source], source),
            indirect & indirect[source],
        )
    return source


def along_line(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Blurs by half a Gaussian along a line, at whole pixels, with edge pixels repeated.

    ImageMagick's MotionBlurImage weights 2 * radius + 1 steps in the same way.
    """
    height, width, _ = x.shape
    steps, angle = np.arange(2 * radius + 1), math.radians(degrees)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    downs, rights = (
        np.ceil(steps * slope - 0.5).astype(int) + 2 * radius
        for slope in (math.sin(angle), math.cos(angle))
    )
    around = (2 * radius, 2 * radius)
    padded = np.pad(x, (around, around, (0, 0)), mode="edge")
    blurred = np.zeros_like(x)
    for weight, down, right in zip(weights / weights.sum(), downs, rights, strict=True):
        blurred += np.float32(weight) * padded[down : down + height, right : right + width]
    return blurred
