"""Whole pixels with odd metadata, and what a file is that is no image."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cnnbench.data import large, survey
from cnnbench.data.images import BadImageError, decode
from cnnbench.errors import UsageError

ARRAY = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def saved(image, form, **options):
    out = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(out, form, **options)
    return out.getvalue()


PNG, JPEG = saved(ARRAY, "PNG"), saved(ARRAY, "JPEG", quality=95)


def with_chunk(kind, data, before=b"IDAT"):
    """The PNG with one more chunk."""
    place = PNG.index(before) - 4
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return PNG[:place] + struct.pack(">I", len(data)) + kind + data + checksum + PNG[place:]


def with_exif(*entries):
    """The JPEG with a directory of EXIF tags, each (tag, type, count, four bytes)."""
    packed = [struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries]
    tags = struct.pack("<H", len(packed)) + b"".join(packed) + bytes(4)
    data = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + JPEG[2:]


def looked_at(data):
    return survey.look(lambda _: data, 1, [0], None)


TEXT = zlib.compress(b"a" * 2_000_000)


@pytest.mark.parametrize("data", [
    with_chunk(b"eXIf", b"no EXIF at all"),
    with_chunk(b"eXIf", b"II*\0" + struct.pack("<I", 9999)),
    with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 4\nzzzz")),
    with_chunk(b"zTXt", b"parameters\0\0" + TEXT),
    with_chunk(b"zTXt", b"parameters\0\0" + TEXT, before=b"IEND"),
    with_chunk(b"iTXt", b"prompt\0\1\0\0\0" + TEXT),
    with_chunk(b"iCCP", b"icc\0\0" + TEXT),
])  # fmt: skip
def test_damaged_metadata_and_large_texts_cost_no_image(data):
    assert np.array_equal(decode(data, 3, "x"), ARRAY)


def test_a_large_png_with_damaged_exif_is_read(monkeypatch):
    monkeypatch.setattr(large, "LARGE_PIXELS", 20)
    data = with_chunk(b"eXIf", b"no EXIF at all")
    assert decode(data, 3, "x", short=1).shape == (6, 8, 3)
    assert decode(data, 3, "x").shape == (6, 8, 3)


def test_a_damaged_png_stays_damaged_without_its_texts():
    data = bytearray(with_chunk(b"zTXt", b"parameters\0\0" + TEXT))
    data[-30] ^= 64
    with pytest.raises(BadImageError, match="broken data stream"):
        decode(bytes(data), 3, "x")


@pytest.mark.parametrize("number", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing_and_is_not_told(number):
    data = with_exif((0x112, 3, 1, struct.pack("<HH", number, 0)))
    assert np.array_equal(decode(data, 3, "x"), decode(JPEG, 3, "x"))
    assert looked_at(data).note() == []
    turned = with_exif(
        (0x112, 3, 1, struct.pack("<HH", 6, 0)), (0x9999, 77, 1, b"odd!"), (0x8769, 4, 1, b"zzzz")
    )  # fmt: skip
    assert decode(turned, 3, "x").shape == (8, 6, 3)
    assert "1 turned" in looked_at(turned).note()[0]


def test_a_photograph_with_further_pictures_in_it_is_reduced_as_any_jpeg(monkeypatch):
    first, second = (Image.new("RGB", (90, 60), color) for color in ("red", "blue"))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert "1 of several frames" in looked_at(data).note()[0]
    monkeypatch.setattr(large, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(large, "MAX_PIXELS", 2000)
    found = decode(data, 3, "x", short=3)
    assert found.shape[0] < 60 and found[0, 0, 0] > 250 and found[0, 0, 2] < 5


# Transparency


def test_a_bmp_without_any_alpha_is_seen():
    sizes = (14 + 108 + ARRAY.size // 3 * 4, 0, 0, 14 + 108)
    header = b"BM" + struct.pack("<IHHI", *sizes)
    header += struct.pack("<IiiHHIIiiII", 108, 8, 6, 1, 32, 3, 0, 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    for alpha, expected in ((0, ARRAY), (1, None)):
        rows = np.dstack([ARRAY[::-1, :, ::-1], np.full((6, 8), alpha, np.uint8)])
        found = decode(header + rows.tobytes(), 3, "x")
        assert np.array_equal(found, expected) if expected is not None else found.min() > 250


def test_images_of_which_nothing_is_seen_are_told():
    hidden = saved(np.dstack([ARRAY, np.zeros((6, 8), np.uint8)]), "PNG")
    assert "1 transparent everywhere" in looked_at(hidden).note()[0]
    seen = saved(np.dstack([ARRAY, np.full((6, 8), 9, np.uint8)]), "PNG")
    assert "everywhere" not in looked_at(seen).note()[0]


# PPM says what white is


@pytest.mark.parametrize("white", [300, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_values_of_ppm_are_those_of_the_file(kind, white):
    channels = 3 if kind in ("P3", "P6") else 1
    values = np.linspace(0, white, 12 * channels).astype(">u2")
    body = values.tobytes() if kind in ("P5", "P6") else b" ".join(b"%d" % v for v in values)
    data = f"{kind} 4 3 {white}\n".encode() + body
    for low, high in ((0, white), (50, 250)):
        found = decode(data, channels, "x", None if high == white else (low, high))
        level = np.clip((values.astype(float) - low) * 255 / (high - low), 0, 255)
        assert np.abs(found.ravel() - level).max() <= 0.51
    assert f"of {white.bit_length()}-bit values" in looked_at(data).note()[0]
    with pytest.raises(BadImageError, match=r"truncated|not enough"):
        decode(data[: len(data) // 2], channels, "x")


def test_a_ppm_of_16_bits_that_are_fewer_is_asked_about():
    data = b"P6 2 1 65535\n" + np.array([0, 9, 4000, 1, 2, 3], ">u2").tobytes()
    with pytest.raises(UsageError, match=r"no value above 4000"):
        looked_at(data)


# What is no image


@pytest.mark.parametrize(("data", "what"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "it is a Git LFS pointer"),
    (b"\n<!DOCTYPE html><html>404", "it is a web page, not JPEG"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC, not JPEG"),
    (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "it is AVIF, not JPEG"),
    (bytes(5000), "it begins with zeros"),
    (JPEG[:2] + b"\xff\xee\0\7Adobe" + JPEG[2:], "it begins as a JPEG, but its header is damaged"),
    (b"hello", "it is none of JPEG"),
])  # fmt: skip
def test_a_file_that_is_no_image_is_called_what_it_is(data, what):
    with pytest.raises(BadImageError, match=f"cannot decode the image: {what}"):
        decode(data, 3, "x")
