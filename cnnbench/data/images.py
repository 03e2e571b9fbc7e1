"""Decoding, resizing and cropping of images."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from cnnbench.data import foreign, large, pixels
from cnnbench.data.pixels import BadImageError, ValueRange
from cnnbench.errors import DataError, UsageError

__all__ = ["FORMATS", "SUFFIXES", "BadImageError", "centre_crop", "decode", "read", "resize"]

# Pillow warns about odd metadata. For the whole process, as images are decoded in many threads,
# and `warnings.catch_warnings` is not made for them.
warnings.filterwarnings("ignore", module=r"PIL\.")

Interpolation = Literal["bilinear", "bicubic"]

NO_MEMORY = "not enough memory to decode the image"
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp")
OTHER_SUFFIXES = (".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff")
SUFFIXES = frozenset([*JPEG_SUFFIXES, *OTHER_SUFFIXES, ".ppm", ".pgm", ".pbm", ".pnm"])
# A centre crop with fewer pixels than this share of the scaled image is cut before scaling.
CUT_FIRST = 1 / 16


def decode(
    data: bytes | BinaryIO,
    channels: int,
    name: str,
    value_range: ValueRange | None = None,
    short: int | None = None,
) -> np.ndarray:
    """Decodes an image in any common format and applies its EXIF orientation.

    Args:
        data: the file's bytes, or the opened file; of an animation, only the first frame is used.
        channels: 1 for grayscale, 3 for RGB; transparent pixels become white.
        name: the image's name in error messages.
        value_range: see `pixels.to_uint8`.
        short: the short side that the image will be scaled to, in pixels. Larger images are then
            reduced while they are decoded; see `large`.

    Returns:
        (height, width, channels) uint8.

    Raises:
        BadImageError: not an image, truncated, or too large.
        UsageError: `value_range` must be set for such an image.
        DataError: the file cannot be read.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        image = large.opened(stream, FORMATS)
        kept = pixels.stored(image)
        if not kept.is_plain and not kept.high_byte:
            large.must_fit(image, name)
            with large.gate(image):
                return _wide(image, stream, kept, channels, name, value_range, short)
        if kept.high_byte and value_range not in (None, (0, 65535)):
            what = "16-bit TIFF in color, of which only the upper 8 bits can be read"
            raise BadImageError(what, where=name, allowed="convert it to PNG")
        if large.is_large(image):
            return large.decode(image, stream, channels, name, short)
        image.load()
        turn = large.orientation(image)
        return pixels.on_white(large.turned(pixels.without_empty_alpha(image), turn), channels)
    except (BadImageError, UsageError):
        raise
    except UnidentifiedImageError:
        raise BadImageError(foreign.described(stream, FORMATS), where=name) from None
    except MemoryError:
        raise DataError(NO_MEMORY, where=name) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        if isinstance(error, OSError) and error.errno and error.strerror:
            raise DataError(f"cannot read the image: {error.strerror}", where=name) from None
        if isinstance(error, ValueError) and (cleaned := large.without_texts(stream)):
            return decode(cleaned, channels, name, value_range, short)
        raise BadImageError(f"cannot decode the image: {_reason(error)}", where=name) from None


def decode_floats(
    data: bytes,
    channels: int,
    name: str,
    value_range: ValueRange | None = None,
    short: int | None = None,
) -> np.ndarray:
    """Decodes an image of floats that TFDS has stored as a PNG, four bytes of RGBA for each.

    Args:
        data: the PNG.
        channels: 1 or 3.
        name: the image's name in error messages.
        value_range: see `pixels.to_uint8`.
        short: has no effect.

    Returns:
        (height, width, channels) uint8.

    Raises:
        BadImageError: it is damaged or too large, or no pixel has a value.
        UsageError: `value_range` must be set for such an image.
    """
    try:
        image = large.opened(io.BytesIO(data), ("PNG",))
        large.must_fit(image, name)
        floats = np.asarray(image).view("<f4")[..., 0]
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("cannot decode the image: it is no whole PNG", where=name) from None
    except MemoryError:
        raise DataError(NO_MEMORY, where=name) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        raise BadImageError(f"cannot decode the image: {_reason(error)}", where=name) from None
    levels = pixels.to_uint8(floats, pixels.Stored("float"), name, value_range)
    return pixels.on_white(Image.fromarray(levels), channels)


def read(
    path: Path, channels: int, value_range: ValueRange | None = None, short: int | None = None
) -> np.ndarray:
    """Reads an image file and decodes it with `decode`."""
    try:
        with path.open("rb") as opened:
            return decode(opened, channels, str(path), value_range, short)
    except OSError as error:
        raise DataError(f"cannot read the image: {error.strerror}", where=str(path)) from None


def _reason(error: Exception) -> str:
    """Returns what Pillow says of an image, without the name of the object that it read from."""
    return re.sub(r"'?<_io\.[^>]*>+'?", "its content", str(error)) or type(error).__name__


def _wide(
    image: Image.Image,
    stream: BinaryIO,
    kept: pixels.Stored,
    channels: int,
    name: str,
    value_range: ValueRange | None,
    short: int | None,
) -> np.ndarray:
    """Decodes an image whose values are not unsigned with 8 bits."""
    transparent = image.info.get("transparency")
    if large.is_large(image) and transparent is None and not _is_color(image):
        levels = large.decode_wide(image, kept, name, value_range, short)
        picture = large.turned(Image.fromarray(levels), large.orientation(image))
        return pixels.on_white(picture, channels)
    array = values(image, stream, kept)
    colors = array.shape[2] - (array.shape[2] in (2, 4))
    levels = pixels.to_uint8(array[..., :colors], kept, name, value_range)
    if transparent is not None:
        levels[(array[..., :colors] == np.array(transparent)).all(axis=2)] = 255
    if colors < array.shape[2]:
        levels = np.dstack([levels, (array[..., colors:] // 257).astype(np.uint8)])
    picture = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
    del array, levels
    is_large_png = image.format == "PNG" and large.is_large(image)
    turn = large.png_orientation(stream) if is_large_png else large.orientation(image)
    picture = large.turned(picture, turn)
    return large.reduced(pixels.on_white(picture, channels), image, short)


def _is_color(image: Image.Image) -> bool:
    """Returns whether wide values of an image are lost by Pillow."""
    return image.mode == "RGB" or (image.format == "PNG" and image.mode != "I;16")


def values(image: Image.Image, stream: BinaryIO, kept: pixels.Stored) -> np.ndarray:
    """Decodes an image without conversion.

    Args:
        image: opened, with more than 8 bits per value, or signed or float values.
        stream: the file that it was opened from.
        kept: how it is stored.

    Returns:
        (height, width, channels).
    """
    if _is_color(image):
        is_png = image.format == "PNG"
        return pixels.wide_png(stream) if is_png else pixels.wide_ppm(image, stream)
    image.load()
    array = pixels.values(image, kept)
    return array if array.ndim == 3 else array[..., None]


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
    """Scales the short side to `short` pixels and crops the central `size`, (height, width).

    Args:
        image: (height, width, channels) uint8.
        short: at least the height and the width of `size`.
        size: of the result, in pixels.
        interpolation: see `resize`.
    """
    (height, width), (top, left) = crop_geometry(image.shape[:2], short, size)
    if size[0] * size[1] < CUT_FIRST * height * width:
        return _resized_part(image, (height, width), (top, left), size, interpolation)
    image = resize(image, height, width, interpolation=interpolation)
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def crop_geometry(
    shape: tuple[int, ...], short: int, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the size that `centre_crop` scales an image to, and the top left corner of its crop.

    They are those of torchvision's Resize and CenterCrop, which timm evaluates with too: the long
    side is truncated to whole pixels, and half an odd margin is rounded to the even number.

    Args:
        shape: height and width of the image.
        short: see `centre_crop`.
        size: see `centre_crop`.
    """
    height, width = (short * side // min(shape) for side in shape)
    return (height, width), (round((height - size[0]) / 2), round((width - size[1]) / 2))


def _resized_part(
    image: np.ndarray,
    scaled: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> np.ndarray:
    """Returns the part of the scaled image at `corner`, without scaling the rest.

    Args:
        image: (height, width, channels) uint8.
        scaled: height and width of the whole scaled image.
        corner: top and left of the part in it.
        size: height and width of the part.
        interpolation: see `resize`.
    """
    support = {"bilinear": 1, "bicubic": 2}[interpolation]  # of the filter, in its own pixels
    cut, start, end = [], [], []
    for length, whole, first, count in zip(image.shape, scaled, corner, size, strict=False):
        scale = length / whole
        beyond = support * max(1, scale)  # how far the filter reaches beyond the part
        low = max(0, int(first * scale - beyond) - 1)
        high = min(length, int((first + count) * scale + beyond) + 2)
        cut.append(slice(low, high))
        start.append(first * scale - low)
        end.append(min((first + count) * scale, length) - low)
    box = (start[1], start[0], end[1], end[0])
    return resize(image[cut[0], cut[1]], *size, box, interpolation=interpolation)
