"""Weather corruptions: snow, frost, fog and brightness."""

from __future__ import annotations

import functools

import numpy as np

from cnnbench.evaluation.corruptions.blur import along_line, zoomed
from cnnbench.evaluation.corruptions.corruption import KEY, corruption, grey, to_bytes

# Color of frost, RGB in [0, 1].
ICE = np.array((0.86, 0.94, 1.0), np.float32)


@corruption(
    cifar=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    imagenet=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
def snow(
    x: np.ndarray,
    random: np.random.Generator,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> np.ndarray:
    """Whitens the image and adds snowflakes, blurred along the direction in which they fall.

    Args:
        x: (height, width, 1 or 3) float in [0, 1].
        random: generator of the flakes and the direction.
        mean: mean of the Gaussian noise that flakes are made from.
        scale: standard deviation of that noise.
        zoom: factor by which the noise is enlarged.
        threshold: noise values below this are not flakes.
        radius: radius of the blur in pixels, as in motion_blur.
        sigma: standard deviation of the blur in pixels, as in motion_blur.
        kept: weight of the original image against the whitened one.
    """
    noise = zoomed(random.normal(mean, scale, (*x.shape[:2], 1)), zoom)
    flakes = to_bytes(np.where(noise < threshold, 0, noise)) / np.float32(255)
    flakes = along_line(flakes, radius, sigma, random.uniform(-135, -45))
    flakes = to_bytes(flakes) / np.float32(255)
    x = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey(x) + 0.5)
    return x + flakes + np.rot90(flakes, 2)


@corruption(
    cifar=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    imagenet=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
def frost(x: np.ndarray, random: np.random.Generator, kept: float, ice: float) -> np.ndarray:
    """Overlays a random crop of synthetic frost; not comparable with published results.

    It replaces the authors' six photographs of frost, which are not included.
    """
    height, width, channels = x.shape
    pane = frosted_pane(4 * _power_of_two(max(height, width)))
    top, left = (random.integers(len(pane) - side) for side in (height, width))
    pane = pane[top : top + height, left : left + width]
    return kept * x + ice * (pane if channels == 3 else grey(pane))


@corruption(
    cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
def fog(x: np.ndarray, random: np.random.Generator, density: float, decay: float) -> np.ndarray:
    """Adds a plasma fractal, and rescales so that no value exceeds the image's maximum."""
    height, width, _ = x.shape
    plasma = plasma_fractal(random, _power_of_two(max(height, width)), decay)
    top = x.max()
    return (x + density * plasma[:height, :width, None]) * top / (top + density)


@corruption(cifar=(0.05, 0.1, 0.15, 0.2, 0.3), imagenet=(0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(x: np.ndarray, random: np.random.Generator, shift: float) -> np.ndarray:
    """Adds `shift` to the V of HSV, the maximum of a pixel's channels, by scaling the channels."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + shift, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def plasma_fractal(random: np.random.Generator, side: int, decay: float) -> np.ndarray:
    """Returns a fractal, (side, side) in [0, 1], by the diamond-square algorithm; wraps around.

    Args:
        random: generator of the noise.
        side: pixels, a power of two.
        decay: factor by which the noise decreases from each scale to the next finer one.
    """
    heights, step, noise = np.zeros((side, side)), side, 100.0

    def mean_of_four(total: np.ndarray) -> np.ndarray:
        return total / 4 + noise * random.uniform(-noise, noise, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        centres = mean_of_four(pairs + np.roll(pairs, -1, 1))
        across = corners + np.roll(corners, -1, 1)
        heights[half::step, half::step] = centres
        heights[::step, half::step] = mean_of_four(across + centres + np.roll(centres, 1, 0))
        heights[half::step, ::step] = mean_of_four(pairs + centres + np.roll(centres, 1, 1))
        step, noise = half, noise / decay
    heights -= heights.min()
    return heights / heights.max()


@functools.cache
def frosted_pane(side: int) -> np.ndarray:
    """Returns synthetic frost, (side, side, 3) in [0, 1]: needles at 60 degrees, in drifts."""
    random = np.random.Generator(np.random.Philox(key=KEY))
    drifts = 1 - np.abs(2 * plasma_fractal(random, side, 1.5)[..., None] - 1)
    grains = random.normal(size=(side, side, 1)).astype(np.float32)
    needles = np.max([along_line(grains, side // 32, side / 64, a) for a in (30, 90, 150)], axis=0)
    needles = np.clip(needles / needles.std(), 0, 3) / 3
    return np.clip(0.3 * drifts + drifts * needles + 0.2 * needles, 0, 1).astype(np.float32) * ICE
