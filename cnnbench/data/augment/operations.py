"""Elementary image operations that the augmentation policies are composed of.

A picture is a Pillow image of mode "L" or "RGB". An operation takes the picture, a magnitude, the
fill value in [0, 255] and the interpolation, and ignores those it does not need. Results equal
those of Pillow's ImageOps and ImageEnhance, which the authors of the policies used; lookup tables
are computed in NumPy because Pillow computes them in Python, ten times slower.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

Picture = Image.Image

VALUES = np.arange(256)


def to_picture(image: np.ndarray) -> Picture:
    """Converts (height, width, 1 or 3) uint8 to a picture."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_array(picture: Picture) -> np.ndarray:
    """Converts a picture to (height, width, 1 or 3) uint8, read-only."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def identity(picture: Picture, *_: Any) -> Picture:
    """Returns the picture unchanged."""
    return picture


# Geometry. Affine coefficients map output pixels to input pixels.


def shear_x(picture: Picture, slope: float, fill: int, resample: Image.Resampling) -> Picture:
    """Shifts each row left by `slope` pixels per row below the top."""
    return _affine(picture, (1, slope, 0, 0, 1, 0), fill, resample)


def shear_y(picture: Picture, slope: float, fill: int, resample: Image.Resampling) -> Picture:
    """Shifts each column up by `slope` pixels per column from the left edge."""
    return _affine(picture, (1, 0, 0, slope, 1, 0), fill, resample)


def translate_x(picture: Picture, pixels: float, fill: int, resample: Image.Resampling) -> Picture:
    """Shifts the picture left by `pixels`, truncated to an integer."""
    return _affine(picture, (1, 0, int(pixels), 0, 1, 0), fill, resample)


def translate_y(picture: Picture, pixels: float, fill: int, resample: Image.Resampling) -> Picture:
    """Shifts the picture up by `pixels`, truncated to an integer."""
    return _affine(picture, (1, 0, 0, 0, 1, int(pixels)), fill, resample)


def shift_x(picture: Picture, share: float, fill: int, resample: Image.Resampling) -> Picture:
    """Shifts the picture left by a fraction of its width."""
    return translate_x(picture, share * picture.width, fill, resample)


def shift_y(picture: Picture, share: float, fill: int, resample: Image.Resampling) -> Picture:
    """Shifts the picture up by a fraction of its height."""
    return translate_y(picture, share * picture.height, fill, resample)


def rotate(picture: Picture, degrees: float, fill: int, resample: Image.Resampling) -> Picture:
    """Rotates the picture counterclockwise about its center."""
    return picture.rotate(degrees, resample, fillcolor=_color(picture, fill))


def _affine(
    picture: Picture, coefficients: tuple[float, ...], fill: int, resample: Image.Resampling
) -> Picture:
    color = _color(picture, fill)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=color
    )


def _color(picture: Picture, fill: int) -> float | tuple[float, ...]:
    return fill if picture.mode == "L" else (fill, fill, fill)


# Lookup tables of pixel values.


def invert(picture: Picture, *_: Any) -> Picture:
    """Replaces each value v by 255 - v."""
    return solarize(picture, 0)


def solarize(picture: Picture, threshold: float, *_: Any) -> Picture:
    """Inverts the values at or above the threshold."""
    return _mapped(picture, _solarized(math.ceil(threshold)))


def solarize_add(picture: Picture, addition: float, *_: Any) -> Picture:
    """Adds `addition`, truncated to an integer, to the values below 128; clips at 255."""
    return _mapped(picture, _added(int(addition)))


def posterize(picture: Picture, bits: float, *_: Any) -> Picture:
    """Keeps the highest `bits` bits of each value; `bits` is rounded up."""
    return _mapped(picture, _posterized(math.ceil(bits)))


def autocontrast(picture: Picture, *_: Any) -> Picture:
    """Stretches each channel to the range [0, 255]; constant channels are unchanged."""
    low, high = _extrema(picture)
    scale = 255 / np.maximum(high - low, 1)
    table = np.clip(VALUES * scale - low * scale, 0, 255)
    return _mapped(picture, np.where(high > low, table, VALUES).astype(np.uint8))


def equalize(picture: Picture, *_: Any) -> Picture:
    """Equalizes the histogram of each channel.

    A value becomes the number of pixels below it, in steps of 1/255 of the pixels that do not have
    the highest value. A channel with too few pixels for one step is unchanged.
    """
    pixels, (_, high) = to_array(picture), _extrema(picture)
    bands = pixels.shape[-1]
    places = (pixels + 256 * np.arange(bands)).ravel()
    counts = np.bincount(places, minlength=256 * bands).reshape(bands, 256)
    highest = np.take_along_axis(counts, high, axis=1)
    step = (counts.sum(axis=1, keepdims=True) - highest) // 255
    below = counts.cumsum(axis=1) - counts
    table = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    return _mapped(picture, np.where(step > 0, table, VALUES).astype(np.uint8))


def _mapped(picture: Picture, table: np.ndarray) -> Picture:
    """Maps each value by a table, (256,) for all channels or (channels, 256)."""
    pixels = np.asarray(picture)
    if table.ndim == 2:
        pixels = pixels + 256 * np.arange(len(table))
    return Image.fromarray(table.take(pixels))


def _extrema(picture: Picture) -> np.ndarray:
    """Returns the lowest and the highest value of each channel, (2, channels, 1)."""
    return np.array(picture.getextrema()).reshape(-1, 2).T[..., None]


@lru_cache(maxsize=257)
def _solarized(threshold: int) -> np.ndarray:
    return np.where(threshold <= VALUES, 255 - VALUES, VALUES).astype(np.uint8)


@lru_cache(maxsize=256)
def _added(addition: int) -> np.ndarray:
    return np.where(VALUES < 128, np.minimum(VALUES + addition, 255), VALUES).astype(np.uint8)


@lru_cache(maxsize=16)
def _posterized(bits: int) -> np.ndarray:
    return (VALUES >> (8 - bits) << (8 - bits)).astype(np.uint8)


# Blends. Factor 0 gives the degenerate image, 1 the picture; more than 1 extrapolates.


def color(picture: Picture, factor: float, *_: Any) -> Picture:
    """Blends the picture with its grayscale version (ITU-R 601-2 luma)."""
    return ImageEnhance.Color(picture).enhance(factor)


def contrast(picture: Picture, factor: float, *_: Any) -> Picture:
    """Blends the picture with the mean of its grayscale version."""
    return ImageEnhance.Contrast(picture).enhance(factor)


def brightness(picture: Picture, factor: float, *_: Any) -> Picture:
    """Blends the picture with black."""
    return ImageEnhance.Brightness(picture).enhance(factor)


def sharpness(picture: Picture, factor: float, *_: Any) -> Picture:
    """Blends the picture with a copy blurred by the kernel (1 1 1; 1 5 1; 1 1 1) / 13."""
    return ImageEnhance.Sharpness(picture).enhance(factor)


def hue(picture: Picture, turn: float) -> Picture:
    """Rotates the hue by a fraction of the circle, in steps of 1/255; gray is unchanged."""
    if picture.mode == "L":
        return picture
    hues, *others = picture.convert("HSV").split()
    turned = (np.asarray(hues, np.int16) + int(turn * 255)).astype(np.uint8)  # wraps at 256
    return Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB")


def greyscale(picture: Picture) -> Picture:
    """Returns the luma (ITU-R 601-2) in every channel."""
    return picture.convert("L").convert(picture.mode)
