"""Identifies files that cannot be read as images by their first bytes."""

from __future__ import annotations

from typing import BinaryIO

from PIL import TiffImagePlugin

from cnnbench.data import pixels

# Formats that are read, by how their files begin.
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
# Other files that are found under the names of images.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, whose image was not fetched (git lfs pull)",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"<?xml": "XML",
    b"<svg": "SVG",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
# By their brand, after "ftyp".
BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"), "HEIC"
)


def described(stream: BinaryIO, formats: tuple[str, ...]) -> str:
    """Returns why a file is no image that can be read.

    Args:
        stream: the file.
        formats: those that are read.
    """
    stream.seek(0)
    head = stream.read(64)
    if not head:
        return "the image file is empty"
    if not head.strip(b"\0"):
        return "cannot decode the image: it begins with zeros, as files do that were never written"
    if head[:4] in (b"II*\0", b"MM\0*") and (said := _tiff(stream, head)):
        return f"cannot decode the image: {said}"
    for start, name in SIGNATURES.items():
        if head.startswith(start):
            return f"cannot decode the image: it begins as a {name}, but its header is damaged"
    found = BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = found or next(
        (
            name
            for start, name in OTHERS.items()
            if head.startswith(start) or text.startswith(start)
        ),
        None,
    )
    what = f"it is {found}, not" if found else "it is none of"
    return f"cannot decode the image: {what} {', '.join(formats)}"


def _tiff(stream: BinaryIO, head: bytes) -> str | None:
    """Returns the channels and numbers of a TIFF; None if its directory cannot be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[:8])
        stream.seek(tags.next)
        tags.load(stream)
        bits = "/".join(str(each) for each in dict.fromkeys(tags.get(pixels.BITS, (1,))))
        number = {1: "unsigned", 2: "signed", 3: "float"}
        kind = number.get(tags.get(pixels.SAMPLE_FORMAT, (1,))[0], "unknown")
        return f"TIFF of {tags.get(pixels.SAMPLES, 1)} channels of {bits} bits, {kind}"
    except Exception:  # whatever a damaged TIFF raises
        return None
