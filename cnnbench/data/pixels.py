"""From the values in an image file to 8 bits: wide integers, signed ones, floats, transparency.

docs/data.md has the rules as a table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from cnnbench.backend.lazy import tf
from cnnbench.errors import DataError, UsageError

ValueRange = tuple[float, float]
# Values converted at a time, so that no image is held in double precision.
BLOCK = 2**20
# Half a level of 8 bits: floats so far outside of 0-1 are still rounded to 0 or 255.
TOLERANCE = 0.5 / 255
# Tags of TIFF; the last one is GDAL's.
BITS, WHITE_IS_ZERO, SAMPLES, SAMPLE_FORMAT, NO_DATA = 258, 262, 277, 339, 42113
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
# White of 16 bits.
WHITE = 2**16 - 1


class BadImageError(DataError):
    """An image that cannot be decoded; the message names its file or record."""


@dataclass(frozen=True)
class Stored:
    """How a file stores the values of an image, known from its header.

    Attributes:
        kind: "8-bit", "9-bit" to "16-bit", "32-bit", "signed 8-bit", "signed 16-bit",
            "signed 32-bit" or "float".
        high_byte: whether only the upper half of 16-bit values can be read.
        inverted: whether the lowest value is white.
        no_data: the value of pixels without data, if the file names one.
        white: the value of white that the file names, or the largest one of 12 or 16 bits.
    """

    kind: str = "8-bit"
    high_byte: bool = False
    inverted: bool = False
    no_data: float | None = None
    white: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether values are unsigned and have 8 bits."""
        return self.kind == "8-bit"


def stored(image: Image.Image) -> Stored:
    """Returns how an opened image's values are stored."""
    if image.format == "TIFF":
        return _tiff(image)
    if image.mode == "F":
        return Stored("float")
    packed = _packed(image)
    if image.format == "PPM" and (image.mode == "I" or packed[-1] > 255):
        white = packed[-1] or WHITE
        return Stored(f"{white.bit_length()}-bit", white=white)
    if image.mode.startswith("I") or packed[0].endswith(";16B"):
        return Stored("16-bit", white=WHITE)
    return Stored()


def _packed(image: Image.Image) -> tuple[str, int]:
    """Returns Pillow's name of how pixels are packed, such as RGB;16B, and white in PPM or 0."""
    tile = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    args = tile[0].args if tile else ""
    if not isinstance(args, tuple) or not args:
        return str(args), 0
    return str(args[0]), args[1] if len(args) == 2 and isinstance(args[1], int) else 0


def _tiff(image: Image.Image) -> Stored:
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    bits = max(_numbers(tags.get(BITS, 1)))
    number = _numbers(tags.get(SAMPLE_FORMAT, UNSIGNED))[0]
    if bits <= 8 and number != SIGNED:
        return Stored()
    kind = {UNSIGNED: f"{bits}-bit", SIGNED: f"signed {bits}-bit", FLOAT: "float"}.get(number)
    several = image.mode not in ("L", "F", "I") and not image.mode.startswith("I;")
    return Stored(
        kind or f"{bits}-bit",
        high_byte=bits == 16 and several,
        inverted=tags.get(WHITE_IS_ZERO) == 0 and not several,
        no_data=_number(tags.get(NO_DATA)),
        white=2**bits - 1 if number == UNSIGNED and bits in (12, 16) else None,
    )


def _numbers(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(str(value)),)


def _number(text: object) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def values(image: Image.Image, kept: Stored) -> np.ndarray:
    """Returns the values of a loaded image, (height, width) or (height, width, channels)."""
    array = np.asarray(image)
    if kept.kind == "signed 8-bit":
        return array.view(np.int8)
    if kept.kind == "32-bit":
        return array.view(np.uint32)
    if array.dtype == np.int32 and kept.white and kept.white < WHITE:  # Pillow scaled it to WHITE
        return (array.astype(np.uint32) * np.uint32(kept.white) + np.uint32(WHITE // 2)) // WHITE
    return array


def wide_png(stream: BinaryIO) -> np.ndarray:
    """Decodes a PNG of 16 bits with TensorFlow, for Pillow drops the lower 8 of several channels.

    Args:
        stream: the file.

    Returns:
        (height, width, channels) uint16.
    """
    stream.seek(0)
    array: np.ndarray = tf.io.decode_png(stream.read(), channels=0, dtype=tf.uint16).numpy()
    return array


def wide_ppm(image: Image.Image, stream: BinaryIO) -> np.ndarray:
    """Reads a PPM in color with more than 8 bits, of which Pillow keeps 8.

    Args:
        image: opened, but not loaded.
        stream: the file.

    Returns:
        (height, width, 3) uint16.
    """
    assert isinstance(image, ImageFile.ImageFile)
    decoder, _, offset, _ = image.tile[0]
    stream.seek(offset)
    data = stream.read()
    if decoder == "ppm_plain":
        array = np.array(re.sub(rb"#[^\r\n]*", b"", data).split(), np.uint16)
    else:
        array = np.frombuffer(data[: len(data) // 2 * 2], ">u2")
    shape = (image.height, image.width, 3)
    if array.size < math.prod(shape):
        raise OSError("image file is truncated")
    return array[: math.prod(shape)].reshape(shape)


def extremes(array: np.ndarray, kept: Stored) -> tuple[float, float] | None:
    """Returns the least and the largest value that is finite and has data; None without any."""
    low, high = math.inf, -math.inf
    for block in _blocks(array):
        if (there := block[has_data(block, kept)]).size:
            low, high = min(low, float(there.min())), max(high, float(there.max()))
    return (low, high) if low <= high else None


def to_uint8(
    array: np.ndarray, kept: Stored, name: str, value_range: ValueRange | None
) -> np.ndarray:
    """Scales values to 8 bits: the lowest of the range becomes 0, the highest 255.

    Pixels that are NaN, infinite or the file's own value for "no data" become 0. Without a
    `value_range`, unsigned values of 12 and 16 bits have the range of their bits, and floats
    have 0-1.

    Args:
        array: of any shape.
        kept: how the file stores it.
        name: the image's name in error messages.
        value_range: the values of black and white; None: the default of the kind.

    Returns:
        The same shape, uint8.

    Raises:
        BadImageError: no pixel has data.
        UsageError: the kind has no default, or the values are outside of it.
    """
    return scaled(array, kept, span_of([extremes(array, kept)], kept, name, value_range))


def span_of(
    found: Sequence[ValueRange | None], kept: Stored, name: str, value_range: ValueRange | None
) -> ValueRange:
    """Returns the values of black and white, given the extremes of the parts of an image.

    Raises:
        BadImageError, UsageError: as `to_uint8`.
    """
    there = [each for each in found if each]
    if not there:
        raise BadImageError("no pixel has a value: all are NaN, infinite or no data", where=name)
    most = min(low for low, _ in there), max(high for _, high in there)
    return range_of(most, kept, name, value_range)


def scaled(array: np.ndarray, kept: Stored, span: ValueRange) -> np.ndarray:
    """Scales values to 8 bits, as `to_uint8`, given the values of black and white."""
    low, high = span
    result = np.empty(array.shape, np.uint8)
    for block, out in zip(_blocks(array), _blocks(result), strict=True):
        there = has_data(block, kept)
        level = (np.where(there, block, low).astype(np.float64) - low) * (255 / (high - low))
        level = np.clip(level + 0.5, 0, 255)
        out[...] = np.where(there, 255 - np.floor(level) if kept.inverted else level, 0)
    return result


def range_of(
    found: tuple[float, float], kept: Stored, name: str, value_range: ValueRange | None
) -> ValueRange:
    """Returns the values of black and white: those given, or the default of the kind.

    Args:
        found: the least and the largest value of the image.
        kept: how the file stores values.
        name: the image's name in error messages.
        value_range: what the recipe says.

    Raises:
        UsageError: the kind has no default, or the values are outside of it.
    """
    if value_range:
        return value_range
    if kept.white is not None:
        return 0, kept.white
    if kept.kind == "float" and found[0] >= -TOLERANCE and found[1] <= 1 + TOLERANCE:
        return 0, 1
    raise must_be_set(f"{name} has {kept.kind} values from {found[0]:g} to {found[1]:g}")


def must_be_set(what: str, example: str = "") -> UsageError:
    """Returns the error of images whose range of values cannot be known."""
    allowed = f"must be set to their black and white{example}"
    return UsageError(what, key="data.value_range", allowed=allowed)


def has_data(block: np.ndarray, kept: Stored) -> np.ndarray:
    """Returns where values are finite and not the file's value for "no data"."""
    there = np.isfinite(block)
    if kept.no_data is not None:
        with np.errstate(over="ignore"):  # beyond what a float32 holds: no pixel has it
            there &= (
                block != block.dtype.type(kept.no_data)
                if block.dtype.kind == "f"
                else (block != kept.no_data)
            )
    return there


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields views of some rows each."""
    rows = max(1, BLOCK * len(array) // max(1, array.size))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def without_empty_alpha(image: Image.Image) -> Image.Image:
    """Returns a loaded image, without alpha if it is a BMP whose alpha is 0 everywhere.

    Programs that write BMP of 32 bits leave 0 there, and viewers show such images.
    """
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        return image.convert("RGB")
    return image


def on_white(image: Image.Image, channels: int) -> np.ndarray:
    """Converts an 8-bit image of any mode; transparent pixels become white.

    Returns:
        (height, width, channels) uint8, grayscale for 1 channel and RGB for 3.
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array[..., None] if channels == 1 else array
