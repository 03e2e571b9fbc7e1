"""Large and thin images: what is read of them, and in how much memory."""

import io
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_pixels import tiff

from cnnbench.data import images, large, pixels, survey
from cnnbench.data.images import BadImageError, centre_crop, decode

SHORT = 10


def smooth(height, width, channels=3):
    y, x = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(x / 40 + k) + 60 * np.cos(y / 50) for k in range(channels)]
    return np.dstack(waves).astype(np.uint8)


def saved(picture, form, **options):
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def small_limits(monkeypatch):
    """Images above 1,000 pixels are large, and bands have few rows."""
    monkeypatch.setattr(large, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(large, "BAND_PIXELS", 2500)


FACTOR = min(301, 207) // (large.MARGIN * SHORT)


FORMS = [
    ("PNG", {}), ("PNG", {"compress_level": 1}), ("TIFF", {}), ("BMP", {}), ("GIF", {}),
    ("WEBP", {"lossless": True}), ("PPM", {}),
]  # fmt: skip
# What Pillow cannot write.
NONE = [("BMP", "LA"), ("PPM", "LA"), ("PPM", "P")]


@pytest.mark.parametrize(
    ("form", "options", "mode"),
    [
        (form, options, mode)
        for form, options in FORMS
        for mode in ("RGB", "L", "P", "RGBA", "LA", "1")
        if (form, mode) not in NONE
    ],
)
def test_a_reduced_image_is_the_mean_of_the_whole(small_limits, form, options, mode):
    picture = Image.fromarray(smooth(301, 207)).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(smooth(301, 207, 1)[..., 0]))
    data = saved(picture, form, **options)
    stored = Image.open(io.BytesIO(data))
    for channels in (1, 3):
        whole = pixels.on_white(stored, channels)
        expected = Image.fromarray(whole.squeeze()).reduce(FACTOR)
        found = decode(data, channels, "x", short=SHORT)
        assert found.shape == (*expected.size[::-1], channels)
        assert np.array_equal(found.squeeze(), np.asarray(expected))
        assert np.array_equal(decode(data, channels, "x"), whole)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_large_jpeg_is_reduced_by_its_decoder(small_limits, options):
    array = smooth(600, 800)
    data = saved(Image.fromarray(array), "JPEG", quality=95, **options)
    found = decode(data, 3, "x", short=SHORT)
    assert found.shape[:2] in ((75, 100), (50, 67), (40, 54))
    expected = Image.fromarray(array).resize(found.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(found - np.asarray(expected).astype(int)).mean() < 3


@pytest.mark.parametrize("kind", ["float32", "uint16"])
def test_large_images_of_wide_values_are_reduced(small_limits, kind):
    top = {"float32": 1, "uint16": 65535}[kind]
    array = (smooth(301, 207, 1)[..., 0] / 255 * top).astype(kind)
    data = saved(Image.fromarray(array), "TIFF")
    expected = Image.fromarray(decode(data, 1, "x")[..., 0]).reduce(FACTOR)
    whole = Image.fromarray(smooth(301, 207, 1)[..., 0]).reduce(FACTOR)
    found = decode(data, 1, "x", short=SHORT)[..., 0]
    assert np.array_equal(found, expected)
    assert np.abs(found - np.asarray(whole).astype(int)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "PPM"])
def test_large_images_of_16_bits_in_color_are_reduced(small_limits, form):
    array = smooth(301, 207).astype(np.uint16) * 257
    if form == "PNG":
        data = tf.io.encode_png(array).numpy()
    else:
        data = b"P6 207 301 65535\n" + array.astype(">u2").tobytes()
    expected = Image.fromarray(decode(data, 3, "x")).reduce(FACTOR)
    assert np.array_equal(decode(data, 3, "x", short=SHORT), np.asarray(expected))


def test_a_look_at_wide_values_makes_no_copy_of_them():
    array = np.full((1000, 1000, 3), 60_000, np.uint16)
    data = tiff(array)
    tracemalloc.start()
    try:
        found = survey.look(lambda _: data, 1, [0], None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.highest == 60_138 and peak < 11e6  # the image's 8 bits, once or twice, and a block


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_reduced_image_is_upright(small_limits, orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(smooth(480, 400)), form, exif=exif)
    whole = Image.fromarray(decode(data, 3, "x"))
    found = decode(data, 3, "x", short=SHORT)
    expected = np.asarray(whole.resize(found.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert found.shape[0] * whole.width == found.shape[1] * whole.height
    assert np.abs(found - expected).mean() < 4


@pytest.mark.parametrize("damage", ["cut", "checksum", "pixels"])
def test_a_damaged_large_png_is_a_bad_image(small_limits, damage):
    data = bytearray(saved(Image.fromarray(smooth(301, 207)), "PNG"))
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[-20 if damage == "checksum" else len(data) // 2] ^= 64
    with pytest.raises(BadImageError, match=r"x\.png: cannot decode the image: "):
        decode(bytes(data), 3, "x.png", short=SHORT)


def test_too_many_pixels_are_refused(small_limits, monkeypatch):
    monkeypatch.setattr(large, "MAX_PIXELS", 2000)
    monkeypatch.setattr(large, "MAX_REDUCED_PIXELS", 100_000)
    picture = Image.fromarray(smooth(301, 207))
    assert decode(saved(picture, "PNG"), 3, "x", short=SHORT).shape[0] < 100
    assert decode(saved(picture, "JPEG"), 3, "x", short=3).shape[0] < 100
    for data, short in (
        (saved(picture, "TIFF"), SHORT), (saved(picture, "PNG"), None),
        (saved(picture, "JPEG", progressive=True), 3), (saved(picture, "WEBP"), 3),
    ):  # fmt: skip
        with pytest.raises(BadImageError, match="x: 207x301 pixels; at most 2,000"):
            decode(data, 3, "x", short=short)
    with pytest.raises(BadImageError, match="at most 100,000"):
        decode(saved(picture.resize((400, 400)), "PNG"), 3, "x", short=SHORT)


MEASURE = """
import resource, sys
from pathlib import Path
from cnnbench.data import images
images.decode(images.Path(sys.argv[2]).read_bytes(), 3, "warm", None, 224)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
image = images.read(Path(sys.argv[1]), 3, None, 224)
print(image.shape[0], image.shape[1], peak() - before)
"""


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_photographs_of_108_megapixels_are_read_in_little_memory(tmp_path, form):
    file, warm = tmp_path / "photo", tmp_path / "warm"
    mode = "RGB" if form == "JPEG" else "L"
    Image.new(mode, (12000, 9000), "white").save(file, form)
    Image.new(mode, (8, 8)).save(warm, form)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file, warm], capture_output=True, text=True, check=True
    )
    height, width, megabytes = map(float, done.stdout.split())
    assert 4 * 224 <= height <= width <= 2000
    assert megabytes < 120  # whole, it would be 324 MB


# Thin images


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 20000), (1, 100_000), (40, 9000)])
def test_of_a_thin_image_only_the_crop_is_scaled(shape):
    image = np.full((*shape, 3), 255, np.uint8)
    tracemalloc.start()
    try:
        found = centre_crop(image, 256, (224, 224))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (224, 224, 3) and np.all(found == 255) and peak < 2**22


@pytest.mark.parametrize("shape", [(12, 900), (900, 12), (31, 1007), (300, 20_000), (2000, 100)])
def test_the_crop_of_a_thin_image_is_that_of_the_scaled_image(shape, monkeypatch):
    image = smooth(*shape)
    image[::7, ::5] //= 2
    found = centre_crop(image, 40, (32, 32))
    monkeypatch.setattr(images, "CUT_FIRST", 0)
    whole = centre_crop(image, 40, (32, 32))
    assert np.abs(found - whole.astype(int)).max() <= 1
