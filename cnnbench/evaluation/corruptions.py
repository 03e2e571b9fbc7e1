"""Corruptions of test images: 15 kinds in five severities, to measure robustness with.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", section 3. The constants are those of the authors' programs: of CIFAR-10-C
(make_cifar_c.py), or of ImageNet-C (make_imagenet_c.py) where an image has at least 64 pixels a
side. Accuracies come near those on the published files and do not equal them:

- frost is synthetic, where the authors lay photographs of frost over an image;
- motion blur, which snow has too, is a line kernel of ours in place of ImageMagick's;
- the random draws are others, and images are not compressed as JPEG besides, as ImageNet-C's are.

Each is a pure function of an image, (height, width, 1 or 3) uint8, a severity from 1 to 5 and a
random generator, and returns an image of the same shape and type.
"""

from __future__ import annotations

import functools
import io
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from cnnbench.data.preprocess import LUMA

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

CORRUPTIONS: dict[str, Corruption] = {}
SEVERITIES = (1, 2, 3, 4, 5)
NOTES = ("frost is synthetic: not comparable", "motion blur and snow use a line kernel of our own")

# Images with fewer pixels a side are corrupted as CIFAR-10-C.
LARGE = 64
# Of all draws: whatever the recipe, an example is corrupted in the same way.
KEY = 2**41
ICE = np.array((0.86, 0.94, 1.0), np.float32)
# The authors give the lengths of elastic_transform for 244 pixels, and apply them to 224.
WIDER = 244 / 224


def draws(name: str, severity: int, position: int) -> np.random.Generator:
    """Returns the generator for one corruption of the example at a position of its split."""
    counter = (0, zlib.crc32(name.encode()), severity, position)
    return np.random.Generator(np.random.Philox(key=KEY, counter=counter))


def _corruption(*, cifar: Sequence[Any], imagenet: Sequence[Any]) -> Callable:
    """Registers a function of values in 0-1, a generator and the constants of a severity."""

    def register(function: Callable[..., np.ndarray]) -> Corruption:
        @functools.wraps(function)
        def corrupt(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
            table = imagenet if min(image.shape[:2]) >= LARGE else cifar
            constants = table[severity - 1]
            constants = constants if isinstance(constants, tuple) else (constants,)
            return _to_bytes(function(image / np.float32(255), random, *constants))

        CORRUPTIONS[function.__name__] = corrupt
        return corrupt

    return register


@_corruption(cifar=(0.04, 0.06, 0.08, 0.09, 0.10), imagenet=(0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(x: np.ndarray, random: np.random.Generator, scale: float) -> np.ndarray:
    """Adds normal noise of standard deviation `scale` to each value."""
    return x + random.normal(scale=scale, size=x.shape)


@_corruption(cifar=(500, 250, 100, 75, 50), imagenet=(60, 25, 12, 5, 3))
def shot_noise(x: np.ndarray, random: np.random.Generator, photons: float) -> np.ndarray:
    """Draws each value from a Poisson distribution; white is `photons` on average."""
    return random.poisson(x * photons) / photons


@_corruption(cifar=(0.01, 0.02, 0.03, 0.05, 0.07), imagenet=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(x: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """Sets a share of the values, each channel by itself, to 0 or 1: salt and pepper."""
    hit, salt = random.random((2, *x.shape))
    return np.where(hit < share, salt < 0.5, x)


@_corruption(
    cifar=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    imagenet=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
def defocus_blur(
    x: np.ndarray, random: np.random.Generator, radius: float, sigma: float
) -> np.ndarray:
    """Averages over a disk of `radius` pixels whose edge is smoothed by a Gaussian."""
    return ndimage.correlate(x, _disk(radius, sigma)[:, :, None], mode="mirror")


@_corruption(
    cifar=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    imagenet=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
def glass_blur(
    x: np.ndarray, random: np.random.Generator, sigma: float, reach: int, rounds: int
) -> np.ndarray:
    """Blurs, lets pixels take the place of others up to `reach` away, and blurs again."""
    height, width, channels = x.shape
    x = _to_bytes(_blurred(x, sigma)) / np.float32(255)
    for _ in range(rounds):
        places = _scattered(height, width, reach, random)
        x = x.reshape(-1, channels)[places].reshape(x.shape)
    return _blurred(x, sigma)


@_corruption(
    cifar=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    imagenet=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
)
def motion_blur(
    x: np.ndarray, random: np.random.Generator, radius: int, sigma: float
) -> np.ndarray:
    """Blurs along a line within 45 degrees of the horizontal; not by ImageMagick."""
    return _along_line(x, radius, sigma, random.uniform(-45, 45))


@_corruption(
    cifar=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    imagenet=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
)
def zoom_blur(x: np.ndarray, random: np.random.Generator, stop: float, step: float) -> np.ndarray:
    """Averages the image and its centre enlarged by every factor from 1 up to `stop`."""
    factors = np.arange(1, stop, step)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


@_corruption(
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
    """Whitens the image and lets flakes fall over it, blurred along the way they fall.

    Args:
        x: (height, width, 1 or 3) float in 0-1.
        random: of the flakes and the direction they fall in.
        mean: of the normal noise that flakes are made of.
        scale: its standard deviation.
        zoom: by which it is enlarged.
        threshold: below which there is no flake.
        radius: pixels of the blur, as in motion_blur.
        sigma: pixels of the blur, as in motion_blur.
        kept: share of the image that is not whitened.
    """
    noise = _zoomed(random.normal(mean, scale, (*x.shape[:2], 1)), zoom)
    flakes = _to_bytes(np.where(noise < threshold, 0, noise)) / np.float32(255)
    flakes = _along_line(flakes, radius, sigma, random.uniform(-135, -45))
    flakes = _to_bytes(flakes) / np.float32(255)
    x = kept * x + (1 - kept) * np.maximum(x, 1.5 * _grey(x) + 0.5)
    return x + flakes + np.rot90(flakes, 2)


@_corruption(
    cifar=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    imagenet=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
def frost(x: np.ndarray, random: np.random.Generator, kept: float, ice: float) -> np.ndarray:
    """Lays a random part of a frosted pane over the image: of synthetic frost, not comparable.

    The authors' six photographs of frost are not at hand; the pane is made of noise and needles.
    """
    height, width, channels = x.shape
    pane = _frosted_pane(4 * _power_of_two(max(height, width)))
    top, left = (random.integers(len(pane) - side) for side in (height, width))
    pane = pane[top : top + height, left : left + width]
    return kept * x + ice * (pane if channels == 3 else _grey(pane))


@_corruption(
    cifar=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    imagenet=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
def fog(x: np.ndarray, random: np.random.Generator, density: float, decay: float) -> np.ndarray:
    """Adds a plasma fractal, and scales so that what was the greatest value can be reached."""
    height, width, _ = x.shape
    plasma = _plasma(random, _power_of_two(max(height, width)), decay)
    top = x.max()
    return (x + density * plasma[:height, :width, None]) * top / (top + density)


@_corruption(cifar=(0.05, 0.1, 0.15, 0.2, 0.3), imagenet=(0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(x: np.ndarray, random: np.random.Generator, shift: float) -> np.ndarray:
    """Adds `shift` to the value of HSV: scales the channels of a pixel, whose greatest it is."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + shift, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


@_corruption(cifar=(0.75, 0.5, 0.4, 0.3, 0.15), imagenet=(0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(x: np.ndarray, random: np.random.Generator, scale: float) -> np.ndarray:
    """Scales the differences from the mean of each channel."""
    mean = x.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return (x - mean) * scale + mean


@_corruption(
    cifar=(
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    imagenet=(
        (2 * WIDER, 0.7 * WIDER, 0.1 * WIDER),
        (2 * WIDER, 0.08 * WIDER, 0.2 * WIDER),
        (0.05 * WIDER, 0.01 * WIDER, 0.02 * WIDER),
        (0.07 * WIDER, 0.01 * WIDER, 0.02 * WIDER),
        (0.12 * WIDER, 0.01 * WIDER, 0.02 * WIDER),
    ),
)
def elastic_transform(
    x: np.ndarray, random: np.random.Generator, strength: float, sigma: float, affine: float
) -> np.ndarray:
    """Maps three points to others near them, then shifts each pixel by smoothed noise.

    Args:
        x: (height, width, 1 or 3) float in 0-1.
        random: of the three points and of the noise.
        strength: factor of the smoothed noise, as a share of the image's side.
        sigma: of the Gaussian that smooths it, as a share of the image's side.
        affine: how far each coordinate of a point may go, as a share of the image's side.
    """
    height, width, _ = x.shape
    side, third = min(height, width), min(height, width) // 3
    corners = np.array([[third, third], [-third, third], [-third, -third]])
    before = np.array([height // 2, width // 2]) + corners
    after = before + side * random.uniform(-affine, affine, before.shape)
    back = np.linalg.solve(np.hstack([after, np.ones((3, 1))]), before)
    pixels = np.indices((height, width))
    x = _sampled(x, np.tensordot(back[:2], pixels, (0, 0)) + back[2][:, None, None], "mirror")
    noise = random.uniform(-1, 1, (2, height, width))
    sigmas = (0, side * sigma, side * sigma)
    shift = ndimage.gaussian_filter(noise, sigmas, mode="reflect", truncate=3)
    return _sampled(x, pixels + side * strength * shift, "reflect")


@_corruption(cifar=(0.95, 0.9, 0.85, 0.75, 0.65), imagenet=(0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(x: np.ndarray, random: np.random.Generator, scale: float) -> np.ndarray:
    """Scales the image down and up again, both by averages over boxes."""
    height, width, _ = x.shape
    small = _picture(x).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return _values(small.resize((width, height), Image.Resampling.BOX), x.shape)


@_corruption(cifar=(80, 65, 58, 50, 40), imagenet=(25, 18, 15, 10, 7))
def jpeg_compression(x: np.ndarray, random: np.random.Generator, quality: int) -> np.ndarray:
    """Compresses the image as JPEG."""
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return _values(Image.open(file), x.shape)


def _to_bytes(x: np.ndarray) -> np.ndarray:
    # Cut off, as the authors do, but never for the last bits of a sum.
    return np.floor(np.clip(x, 0, 1) * 255 + 1e-3).astype(np.uint8)


def _picture(x: np.ndarray) -> Image.Image:
    pixels = _to_bytes(x)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _values(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(picture).reshape(shape) / np.float32(255)


def _grey(x: np.ndarray) -> np.ndarray:
    return x if x.shape[2] == 1 else (x @ np.array(LUMA, np.float32))[..., None]


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the centre of an image to the image's size, by linear interpolation.

    The same as scipy.ndimage.zoom, several times as fast: one axis after the other.
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


def _scattered(height: int, width: int, reach: int, random: np.random.Generator) -> np.ndarray:
    """Returns, of each pixel in row-major order, the index of the one that takes its place.

    Pixels are gone through from the last to the first, and each takes over what is then at a random
    place near it, which stays as it is: that is what the authors' swap of two NumPy views does.
    """
    index = np.arange(height * width).reshape(height, width)
    inside = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    moved, moves = index.copy(), np.zeros((height, width), bool)
    down, right = random.integers(-reach, reach, (2, *index[inside].shape))
    moved[inside] += down * width + right
    moves[inside] = True
    source = moved.ravel()
    # What comes from a pixel that had its turn before came there from elsewhere.
    indirect = (source > index.ravel()) & moves.ravel()[source]
    while indirect.any():
        source, indirect = (
            np.where(indirect, source[source], source),
            indirect & indirect[source],
        )
    return source


def _along_line(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Blurs by half a Gaussian along a line, at whole pixels; edges go on as they are.

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


def _sampled(x: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    """Interpolates an image linearly at (2, height, width) rows and columns."""
    channels = np.moveaxis(x, 2, 0)
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode=mode) for c in channels], 2)


def _plasma(random: np.random.Generator, side: int, decay: float) -> np.ndarray:
    """Returns heights, (side, side) in 0-1, by the diamond-square algorithm; wraps around.

    Args:
        random: of the heights.
        side: a power of two.
        decay: by which the noise shrinks from each scale to the next finer one.
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
def _frosted_pane(side: int) -> np.ndarray:
    """Returns made-up frost, (side, side, 3) in 0-1: needles at 60 degrees, in drifts."""
    random = np.random.Generator(np.random.Philox(key=KEY))
    drifts = 1 - np.abs(2 * _plasma(random, side, 1.5)[..., None] - 1)
    grains = random.normal(size=(side, side, 1)).astype(np.float32)
    needles = np.max([_along_line(grains, side // 32, side / 64, a) for a in (30, 90, 150)], axis=0)
    needles = np.clip(needles / needles.std(), 0, 3) / 3
    return np.clip(0.3 * drifts + drifts * needles + 0.2 * needles, 0, 1).astype(np.float32) * ICE
