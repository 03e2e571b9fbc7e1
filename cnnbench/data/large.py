"""Large images, reduced while they are decoded, so that memory does not grow with the file.

An image of more than LARGE_PIXELS is reduced by a whole factor that leaves its short side at least
MARGIN times as long as that of the network's input, enough for crops of a twelfth of the area:
baseline JPEG while its blocks are transformed (libjpeg's scaled decoding), PNG of 8 bits by a few
rows at a time. Other formats have to be decoded whole: one at a time, and MAX_PIXELS at most.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from cnnbench.data.pixels import (
    BadImageError,
    Stored,
    ValueRange,
    extremes,
    on_white,
    scaled,
    span_of,
    values,
    without_empty_alpha,
)

LARGE_PIXELS = 2**24
# Most pixels of an image that is decoded whole, and of one that is reduced meanwhile.
MAX_PIXELS, MAX_REDUCED_PIXELS = 128_000_000, 500_000_000
MARGIN = 4
# Bytes read or decompressed at a time, and pixels of a band of rows.
PIECE, BAND_PIXELS = 2**16, 2**21
SIGNATURE, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# EXIF's orientation, and what turns an image so upright.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_at_a_time = threading.Lock()


def opened(stream: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Opens an image without decoding it, however large it is.

    Raises:
        UnidentifiedImageError: it has none of the formats.
        Image.DecompressionBombError: it is too large for Pillow, and has to be decoded whole.
    """
    if _begins_with(stream, JPEG) and "JPEG" in formats:
        try:  # also a photograph with further pictures in it (MPO), which Pillow reads otherwise
            return JpegImagePlugin.JpegImageFile(stream)
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Image.open
            raise UnidentifiedImageError from None
    try:
        return Image.open(stream, formats=formats)
    except Image.DecompressionBombError:
        if _begins_with(stream, SIGNATURE):
            return Image.OPEN["PNG"][0](stream, "")
        raise


def _begins_with(stream: BinaryIO, signature: bytes) -> bool:
    stream.seek(0)
    found = stream.read(len(signature))
    stream.seek(0)
    return found == signature


def orientation(image: Image.Image) -> int:
    """Returns an opened image's EXIF orientation, 1 to 8; 1 if the metadata are damaged."""
    try:
        found = image.getexif().get(ORIENTATION)
        return found if found in TURNS else 1
    except Exception:  # whatever Pillow's parsers raise: the pixels are whole
        return 1


def is_large(image: Image.Image) -> bool:
    """Returns whether an image has more than LARGE_PIXELS."""
    return image.width * image.height > LARGE_PIXELS


def must_fit(image: Image.Image, name: str, most: int | None = None) -> None:
    """Raises a BadImageError if an image has more than MAX_PIXELS, or than `most`."""
    most = most or MAX_PIXELS
    if image.width * image.height > most:
        size = f"{image.width}x{image.height} pixels"
        raise BadImageError(size, where=name, allowed=f"at most {most:,}")


def gate(image: Image.Image) -> AbstractContextManager[object]:
    """Returns what to hold while an image is decoded whole: large ones are decoded one by one."""
    return _one_at_a_time if is_large(image) else nullcontext()


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """Turns a picture upright that has an EXIF orientation."""
    turn = TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def decode(
    image: Image.Image, stream: BinaryIO, channels: int, name: str, short: int | None
) -> np.ndarray:
    """Decodes a large image with 8 bits per value, and reduces it.

    Args:
        image: opened, but not decoded.
        stream: the file that it was opened from.
        channels: 1 or 3.
        name: the image's name in error messages.
        short: the short side that the image will be scaled to; None: it is not reduced.

    Returns:
        (height, width, channels) uint8; height and width are those of the file or smaller.

    Raises:
        BadImageError: it has too many pixels.
    """
    factor = _factor(image, short)
    is_sequential = image.format == "JPEG" and "progressive" not in image.info
    in_bands = image.format == "PNG" and factor > 1 and _is_simple_png(stream)
    must_fit(image, name, MAX_REDUCED_PIXELS if (is_sequential or in_bands) else None)
    if image.format == "JPEG":
        image.draft(None, (image.width // factor, image.height // factor))
        factor = _factor(image, short)
    if is_sequential and not is_large(image):
        bands: Iterable[Image.Image] = [image]
    else:
        if not in_bands:
            must_fit(image, name)
        rows = _rows(image, factor)
        bands = _png_bands(stream, rows) if in_bands else _bands(image, rows)
    with gate(image):
        arrays = (on_white(band, channels) for band in bands)
        whole = np.concatenate([_reduced(array, factor) for array in arrays])
    return _array(
        turned(_picture(whole), png_orientation(stream) if in_bands else orientation(image))
    )


def decode_wide(
    image: Image.Image, kept: Stored, name: str, value_range: ValueRange | None, short: int | None
) -> np.ndarray:
    """Decodes a large image of one channel whose values are wide, signed or floats.

    Args:
        image: opened; not a PNG with transparency.
        kept: how it is stored.
        name: the image's name in error messages.
        value_range: see `pixels.to_uint8`.
        short: the short side that the image will be scaled to; None: it is not reduced.

    Returns:
        (height, width) uint8, turned as in the file.
    """
    factor = _factor(image, short)
    rows = _rows(image, factor)
    found = [extremes(values(band, kept), kept) for band in _bands(image, rows)]
    span = span_of(found, kept, name, value_range)
    levels = (scaled(values(band, kept), kept, span) for band in _bands(image, rows))
    return np.concatenate([_reduced(array[..., None], factor) for array in levels])[..., 0]


def reduced(array: np.ndarray, image: Image.Image, short: int | None) -> np.ndarray:
    """Returns a decoded image, reduced if it is large.

    Args:
        array: (height, width, channels) uint8, of the whole image.
        image: as it was opened.
        short: see `decode`.
    """
    return _reduced(array, _factor(image, short)) if is_large(image) else array


def _rows(image: Image.Image, factor: int) -> int:
    return factor * max(1, BAND_PIXELS // (factor * image.width))


def _factor(image: Image.Image, short: int | None) -> int:
    return max(1, min(image.size) // (MARGIN * short)) if short else 1


def _reduced(array: np.ndarray, factor: int) -> np.ndarray:
    """Averages squares of pixels, (height, width, channels) uint8."""
    return array if factor == 1 else _array(_picture(array).reduce(factor))


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _array(picture: Image.Image) -> np.ndarray:
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]


def _bands(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    image.load()
    image = without_empty_alpha(image)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _is_simple_png(stream: BinaryIO) -> bool:
    """Returns whether a PNG has 8 bits per value and is not interlaced."""
    stream.seek(len(SIGNATURE) + 8)
    header = stream.read(13)
    return header[8:9] == b"\x08" and header[12:13] == b"\0"


def png_orientation(stream: BinaryIO) -> int:
    """Returns the EXIF orientation in a PNG, which Pillow would decode the image for."""
    stream.seek(len(SIGNATURE))
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            image = Image.new("L", (1, 1))
            image.info["exif"] = b"Exif\0\0" + stream.read(length)
            return orientation(image)
        stream.seek(length + 4, 1)
    return 1


def without_texts(stream: BinaryIO) -> BytesIO | None:
    """Returns a PNG without its texts and colour profile; None if it has none, or is none.

    They can be damaged, or larger than Pillow takes, in an image that is whole.
    """
    if not _begins_with(stream, SIGNATURE):
        return None
    kept, size = [SIGNATURE], stream.seek(0, 2)
    stream.seek(len(SIGNATURE))
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            stream.seek(length + 4, 1)
        else:
            kept += [head, stream.read(length + 4)]
    whole = b"".join(kept)
    return BytesIO(whole) if len(whole) < size else None


def _png_bands(stream: BinaryIO, rows: int) -> Iterator[Image.Image]:
    """Yields bands of rows of a PNG, each decoded by Pillow as a PNG of its own.

    A row's filter refers to the row above, so that each band begins with the last row of the
    band before it, unfiltered, which is cut off again.
    """
    chunks = _png_chunks(stream)
    header = next(chunks)[1]
    width, height = struct.unpack(">II", header[:8])
    stride = 1 + width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[header[9]]
    kept, above, done = b"", b"", 0
    lines = _png_lines(chunks, stride)
    kept, data = next(lines)[0], bytearray()
    while done < height:
        count = min(rows, height - done)
        while len(data) < count * stride:
            data += next(lines, (b"", b""))[1] or _cut_off()
        extra = 1 if above else 0
        size = struct.pack(">II", width, count + extra)
        filtered = (b"\0" + above if above else b"") + bytes(data[: count * stride])
        body = zlib.compress(filtered, 0)
        png = SIGNATURE + _chunk(b"IHDR", size + header[8:]) + kept + _chunk(b"IDAT", body)
        decoded = Image.open(BytesIO(png + _chunk(b"IEND", b"")), formats=("PNG",))
        band = decoded.crop((0, extra, width, count + extra))
        above = band.crop((0, count - 1, width, count)).tobytes()
        del data[: count * stride]
        done += count
        yield band


def _png_lines(chunks: Iterator[tuple[bytes, bytes]], stride: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the palette and transparency, as chunks, and then filtered rows in pieces."""
    kept, inflate = b"", zlib.decompressobj()
    is_first = True
    for kind, data in chunks:
        if kind in (b"PLTE", b"tRNS"):
            kept += _chunk(kind, data)
        if kind != b"IDAT":
            continue
        if is_first:
            is_first = False
            yield kept, b""
        while data:
            piece = inflate.decompress(data, max(PIECE, stride))
            data = inflate.unconsumed_tail
            if piece:
                yield b"", piece


def _png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yields the kind and the data of each chunk; those of pixels come in pieces.

    Raises:
        OSError: a chunk is cut off, or its checksum is wrong.
    """
    stream.seek(len(SIGNATURE))
    while True:
        length, kind = struct.unpack(">I4s", _exactly(stream, 8))
        checksum = zlib.crc32(kind)
        if kind not in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            stream.seek(length + 4, 1)
            if kind == b"IEND":
                return
            continue
        while length:
            piece = _exactly(stream, min(length, PIECE))
            checksum = zlib.crc32(piece, checksum)
            length -= len(piece)
            yield kind, piece
        if struct.pack(">I", checksum) != _exactly(stream, 4):
            raise OSError(f"wrong checksum of chunk {kind.decode()}")


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    return data if len(data) == count else _cut_off()


def _cut_off() -> Any:
    raise OSError("image file is truncated")


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum
