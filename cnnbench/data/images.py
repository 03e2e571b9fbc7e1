"""Decoding, resizing and cropping of images."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from cnnbench.errors import DataError

Interpolation = Literal["bilinear", "bicubic"]

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"]
)


class BadImageError(DataError):
    """An image that cannot be decoded; the message names its file or record."""


def decode(data: bytes, channels: int, name: str) -> np.ndarray:
    """Decodes an image in any common format and applies its EXIF orientation.

    Args:
        data: the file's bytes; of an animation, only the first frame is used.
        channels: 1 for grayscale, 3 for RGB; transparent pixels become white.
        name: the image's name in error messages.

    Returns:
        (height, width, channels) uint8.

    Raises:
        BadImageError: not an image, truncated, or larger than MAX_PIXELS pixels.
    """
    if not data:
        raise BadImageError("the image file is empty", where=name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height} pixels"
                raise BadImageError(size, where=name, allowed=f"at most {MAX_PIXELS:,}")
            return _array(ImageOps.exif_transpose(image), channels)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        raise BadImageError(f"cannot decode the image: {error}", where=name) from None


def read(path: Path, channels: int) -> np.ndarray:
    """Reads an image file and decodes it with `decode`."""
    try:
        return decode(path.read_bytes(), channels, str(path))
    except OSError as error:
        raise DataError(f"cannot read the image: {error.strerror}", where=str(path)) from None


def _array(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits per pixel
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(values.max(), 1.0)
        image = Image.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array[..., None] if channels == 1 else array


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
    *,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Resizes an image with antialiasing, as Pillow and torchvision do.

    Args:
        image: (height, width, channels) uint8.
        height: of the result, in pixels.
        width: of the result, in pixels.
        box: (left, top, right, bottom) of the region to resize, in pixels; None: the whole image.
        interpolation: the filter, "bilinear" or "bicubic".

    Returns:
        (height, width, channels) uint8.
    """
    if image.shape[:2] == (height, width) and box is None:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resample = Image.Resampling[interpolation.upper()]
    resized = np.asarray(picture.resize((width, height), resample, box))
    return resized.reshape(height, width, image.shape[-1])


def centre_crop(
    image: np.ndarray, short: int, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Scales the short side to `short` pixels and crops the central `size`, (height, width)."""
    scale = short / min(image.shape[:2])
    height, width = (max(w, round(h * scale)) for h, w in zip(image.shape[:2], size, strict=True))
    image = resize(image, height, width, interpolation=interpolation)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])
