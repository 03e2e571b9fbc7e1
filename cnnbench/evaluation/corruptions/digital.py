"""Digital corruptions: contrast, elastic transform, pixelation and JPEG compression."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from cnnbench.evaluation.corruptions.corruption import corruption, to_bytes

# The authors define the lengths of elastic_transform for 244 pixels, but apply them to 224.
WIDER = 244 / 224


@corruption(cifar=(0.75, 0.5, 0.4, 0.3, 0.15), imagenet=(0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(x: np.ndarray, random: np.random.Generator, scale: float) -> np.ndarray:
    """Scales the differences from the mean of each channel."""
    mean = x.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return (x - mean) * scale + mean


@corruption(
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
    """Applies a random affine map of three points, then shifts each pixel by smoothed noise.

    Args:
        x: (height, width, 1 or 3) float in [0, 1].
        random: generator of the three points' shifts and the noise.
        strength: factor of the smoothed noise, as a share of the image's side.
        sigma: standard deviation of the smoothing Gaussian, as a share of the image's side.
        affine: maximum shift of each coordinate of a point, as a share of the image's side.
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


@corruption(cifar=(0.95, 0.9, 0.85, 0.75, 0.65), imagenet=(0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(x: np.ndarray, random: np.random.Generator, scale: float) -> np.ndarray:
    """Scales the image down and up again, both with a box filter."""
    height, width, _ = x.shape
    small = _picture(x).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return _values(small.resize((width, height), Image.Resampling.BOX), x.shape)


@corruption(cifar=(80, 65, 58, 50, 40), imagenet=(25, 18, 15, 10, 7))
def jpeg_compression(x: np.ndarray, random: np.random.Generator, quality: int) -> np.ndarray:
    """Compresses the image as JPEG."""
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=quality)
    return _values(Image.open(file), x.shape)


def _picture(x: np.ndarray) -> Image.Image:
    pixels = to_bytes(x)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _values(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(picture).reshape(shape) / np.float32(255)


def _sampled(x: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    """Interpolates an image linearly at (2, height, width) row and column coordinates."""
    channels = np.moveaxis(x, 2, 0)
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode=mode) for c in channels], 2)
