"""The rule of each kind of pixel, for files and for records."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cnnbench.data import images, survey
from cnnbench.data.images import BadImageError, decode
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.sources.records import RecordSource, look
from cnnbench.errors import DataError, UsageError
from cnnbench.registry.kinds import DATASETS

RAMP = np.linspace(0, 1, 48).reshape(6, 8)


def saved(array, form="TIFF", **options):
    out = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(out, form, **options)
    return out.getvalue()


def tiff(array, *, bits=None, white_is_zero=False, data=None, extra=()):
    """An uncompressed TIFF of one strip, of any type of numbers."""
    array = array if array.ndim == 3 else array[..., None]
    height, width, channels = array.shape
    bits = bits or 8 * array.itemsize
    data = data or array.tobytes()
    number = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    offset = 8 + len(data)
    photometric = 2 if channels >= 3 else int(not white_is_zero)
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [1]),
        (262, 3, [photometric]), (273, 4, [8]), (277, 3, [channels]), (278, 4, [height]),
        (279, 4, [len(data)]), (339, 3, [number] * channels), *extra,
    ]  # fmt: skip
    directory, beyond = struct.pack("<H", len(tags)), b""
    place = offset + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        packed = (
            values if kind == 2 else struct.pack(f"<{len(values)}{'HI'[kind == 4]}", *values)
        )  # fmt: skip
        directory += struct.pack("<HHI", tag, kind, len(values))
        if len(packed) > 4:
            directory += struct.pack("<I", place + len(beyond))
            beyond += packed + b"\0" * (len(packed) % 2)
        else:
            directory += packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", offset) + data + directory + struct.pack("<I", 0) + beyond


def no_data(text):
    return [(42113, 2, f"{text}\0".encode())]


def twelve_bits(array):
    bits = "".join(f"{value:012b}" for value in array.ravel())
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def scaled(top, dtype):
    return np.rint(RAMP * top).astype(dtype)


EXPECTED = np.floor(RAMP * 255 + 0.5)


# Kinds with a default


@pytest.mark.parametrize("data", [
    saved(scaled(65535, np.uint16), "PNG"), saved(scaled(65535, np.uint16)),
    tiff(scaled(65535, np.uint16)),
    tiff(scaled(65535, np.uint16)[::-1, ::-1], white_is_zero=True),
    tiff(scaled(4095, np.uint16), bits=12, data=twelve_bits(scaled(4095, np.uint16))),
    tiff(RAMP.astype(np.float32)), saved(RAMP.astype(np.float32)),
    b"P5 8 6 1023\n" + scaled(1023, ">u2").tobytes(),
    b"P5 8 6 4095\n" + scaled(4095, ">u2").tobytes(),
    b"P5 8 6 65535\n" + scaled(65535, ">u2").tobytes(),
])  # fmt: skip
def test_black_is_0_and_white_is_255(data):
    found = decode(data, 1, "x")[..., 0]
    assert found.shape == (6, 8) and np.abs(found - EXPECTED).max() <= 1
    assert found[0, 0] == 0 and found[-1, -1] == 255
    assert np.array_equal(decode(data, 3, "x"), np.dstack([found] * 3))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_with_color_and_alpha(channels, random):
    array = random.integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    found = decode(tf.io.encode_png(array).numpy(), 3 if channels > 2 else 1, "x")
    alpha = array[..., -1:] / 65535 if channels in (2, 4) else 1
    colors = array[..., : 3 if channels > 2 else 1] / 257
    assert np.abs(found - (colors * alpha + 255 * (1 - alpha))).max() < 2


def test_tiff_of_16_bits_in_color():
    array = np.dstack([scaled(65535, np.uint16)] * 3)
    assert np.abs(decode(tiff(array), 3, "x")[..., 0] - EXPECTED).max() <= 1
    with pytest.raises(BadImageError, match=r"only the upper 8 bits .* convert it to PNG"):
        decode(tiff(array), 3, "x", (0, 4095))


# Kinds without one


@pytest.mark.parametrize(("array", "kind", "span"), [
    (scaled(3000, np.int16) - 1000, "signed 16-bit", (-1000, 2000)),
    (scaled(200, np.int8) - 100, "signed 8-bit", (-100, 100)),
    (scaled(10**6, np.int32) - 5, "signed 32-bit", (-5, 999_995)),
    (scaled(4e9, np.uint32), "32-bit", (0, 4e9)),
    (scaled(255, np.float32), "float", (0, 255)),
    (scaled(2, np.float32) - 1, "float", (-1, 1)),
])  # fmt: skip
def test_what_has_no_default_is_refused_by_name_until_the_range_is_given(array, kind, span):
    with pytest.raises(UsageError, match=rf"data\.value_range: x.tif has {kind} values from") as e:
        decode(tiff(array), 1, "x.tif")
    assert e.value.key == "data.value_range"
    found = decode(tiff(array), 1, "x", span)[..., 0]
    wide = array.astype(np.float64)
    assert np.abs(found - np.clip((wide - span[0]) / (span[1] - span[0]), 0, 1) * 255).max() <= 1


def test_a_range_clips_and_leaves_8_bits_alone():
    data = saved(np.array([[0, 500, 1000, 1023, 4000]], np.uint16), "PNG")
    assert decode(data, 1, "x", (500, 1000)).ravel().tolist() == [0, 0, 255, 255, 255]
    plain = saved(np.arange(256, dtype=np.uint8)[None], "PNG")
    assert decode(plain, 1, "x", (0, 100)).ravel().tolist() == list(range(256))


@pytest.mark.parametrize(("array", "what"), [
    (np.zeros((6, 8, 13), np.uint16), "13 channels of 16 bits, unsigned"),
    (np.zeros((6, 8, 3), np.float32), "3 channels of 32 bits, float"),
    (np.zeros((6, 8), np.float64), "1 channels of 64 bits, float"),
])  # fmt: skip
def test_tiffs_that_are_not_read_are_described(array, what):
    with pytest.raises(BadImageError, match=what):
        decode(tiff(array), 3, "x")


# No data


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("level", [0.2, 0.8])
def test_a_pixel_without_a_number_costs_itself_alone(hole, level):
    array = np.full((32, 32), level, np.float32)
    array[0, 0] = hole
    found = decode(tiff(array), 3, "x")
    assert np.all(found[0, 0] == 0) and np.all(found[1:] == round(level * 255))


@pytest.mark.parametrize(("array", "text", "value"), [
    (RAMP.astype(np.float32), "-9999", -9999), (RAMP.astype(np.float32), "nan", np.nan),
    (RAMP.astype(np.float32), "-3.4028234663852886e+38", -3.4028234663852886e38),
    (scaled(60000, np.uint16), "65535", 65535), (scaled(300, np.int16), "-32768", -32768),
])  # fmt: skip
def test_values_that_a_file_calls_no_data_become_black(array, text, value):
    array[5, 7] = value
    span = (0, 300) if array.dtype == np.int16 else None
    found = decode(tiff(array, extra=no_data(text)), 1, "x", span)[..., 0]
    assert found[5, 7] == 0 and np.all(np.diff(found.ravel()[:-1].astype(int)) >= 0)
    assert found[5, 6] > 220


def test_an_image_without_any_data_is_a_bad_image():
    with pytest.raises(BadImageError, match="no pixel has a value"):
        decode(tiff(np.full((4, 4), np.nan, np.float32)), 3, "x")


# 8 bits


def test_8_bit_modes_have_their_colors():
    red = Image.new("RGB", (4, 4), (250, 10, 10))
    half = Image.new("RGBA", (4, 4), (250, 10, 10, 102))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    gif = Image.new("P", (4, 4), 1)
    gif.putpalette([0, 0, 0, 250, 10, 10])
    for data, color in (
        (saved(red, "PNG"), (250, 10, 10)), (saved(palette, "PNG"), (250, 10, 10)),
        (saved(half, "PNG"), (253, 157, 157)),
        (saved(half, "WEBP", lossless=True), (253, 157, 157)),
        (saved(gif, "GIF", transparency=1), (255, 255, 255)), (saved(gif, "GIF"), (250, 10, 10)),
        (saved(Image.new("LA", (4, 4), (100, 51)), "PNG"), (224, 224, 224)),
        (saved(red.convert("CMYK"), "JPEG", quality=100), (250, 10, 10)),
        (saved(red.convert("CMYK"), "TIFF"), (250, 10, 10)),
        (saved(Image.new("1", (4, 4), 1), "PNG"), (255, 255, 255)),
    ):  # fmt: skip
        assert np.abs(decode(data, 3, "x").reshape(-1, 3) - np.array(color)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_applied_to_each_depth(orientation):
    array = (np.arange(12).reshape(3, 4) * 20).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.T,
        6: np.rot90(array, -1), 7: array[::-1, ::-1].T, 8: np.rot90(array),
    }[orientation]  # fmt: skip
    for stored in (array, array.astype(np.uint16) * 257):
        found = decode(saved(stored, "PNG", exif=exif), 1, "x")[..., 0]
        assert np.array_equal(found, upright)
    color = np.dstack([array.astype(np.uint16) * 257] * 3)
    png = tf.io.encode_png(color).numpy()
    exif_chunk = saved(array, "PNG", exif=exif)
    start = exif_chunk.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", exif_chunk[start : start + 4])
    png = png[:33] + exif_chunk[start : start + 12 + length] + png[33:]
    assert np.array_equal(decode(png, 1, "x")[..., 0], upright)


def test_an_error_does_not_name_python_objects():
    odd = tiff(RAMP)[:-9]  # its directory is cut off
    for data in (b"hello", b"\xff\xd8\xff" + bytes(50), b"II*\0" + bytes(50), odd):
        with pytest.raises(BadImageError) as told:
            decode(data, 3, "x.jpg")
        assert "BytesIO" not in str(told.value) and str(told.value).startswith("x.jpg: cannot")


# What is told of a data set


def survey_of(*files, wide=None, value_range=None):
    wide = range(len(files)) if wide is None else wide
    return survey.look(lambda index: files[index], len(files), wide, value_range)


def test_the_note_counts_each_kind():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.new("RGB", (4, 4))
    hole = RAMP.astype(np.float32)
    hole[0, 0] = np.nan
    found = survey_of(
        saved(plain, "PNG"), saved(plain.convert("RGBA"), "PNG"), saved(plain, "JPEG", exif=exif),
        saved(scaled(60000, np.uint16), "PNG"), tiff(hole), b"damaged", saved(plain, "GIF"),
    )  # fmt: skip
    (note,) = found.note()
    for part in (
        "of 7 images", "1 with an alpha channel",
        "1 of 16-bit values (0 to 65535 becomes 0 to 255)",
        "1 of float values (0 to 1", "1 with pixels that are NaN", "1 turned", "1 with a palette",
    ):  # fmt: skip
        assert part in note
    assert survey_of(saved(plain, "PNG"), saved(plain, "JPEG")).note() == []


@pytest.mark.parametrize(("top", "said"), [(200, 255), (1023, 1023), (4000, 4095), (16383, 16383)])
def test_16_bits_that_are_fewer_are_asked_about(top, said):
    grey = saved(scaled(top, np.uint16), "PNG")
    color = tf.io.encode_png(np.dstack([scaled(top, np.uint16)] * 3)).numpy()
    for data in (grey, color, tiff(scaled(top, np.uint16))):
        with pytest.raises(UsageError, match=rf"no value above {top}; .* probably \[0, {said}\]"):
            survey_of(data, data)
        assert survey_of(data, value_range=(0, said)).found == {"16-bit": 1}
        bright = saved(scaled(65535, np.uint16), "PNG")
        assert survey_of(data, bright).found == {"16-bit": 2}


def test_a_single_wide_image_among_many_is_looked_at(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(200 if split == "train" else 1):
                (tmp_path / split / name / f"{i}.png").write_bytes(saved(RAMP > 0.5, "PNG"))
    (tmp_path / "train/b/77.tif").write_bytes(tiff(scaled(900, np.int16)))
    options = {"path": str(tmp_path), "image_size": 8, "on_bad_image": "skip"}
    with pytest.raises(UsageError, match=r"77\.tif has signed 16-bit values from 0 to 900"):
        _ = open_dataset(DATASETS.spec("image_folder", **options), Access()).survey
    spec = DATASETS.spec("image_folder", value_range=[0, 900], **options)
    assert "1 of signed 16-bit values (0 to 900" in open_dataset(spec, Access()).survey.note()[0]
    source = open_dataset(spec, Access()).split("train").source
    (index,) = [i for i, path in enumerate(source.paths) if path.name == "77.tif"]
    assert np.abs(source.read(index)[0][..., 0] - EXPECTED).max() <= 1


def test_an_image_to_predict_of_unknown_range_is_refused(tmp_path):
    for name, data, what in (
        ("a.png", saved(scaled(1000, np.uint16), "PNG"), "no value above 1000"),
        ("a.tif", tiff(scaled(500, np.int16)), "signed 16-bit values from 0 to 500"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: what is black and white is not .*{what}"):
            survey.must_be_known(tmp_path / name, {}, None)
        survey.must_be_known(tmp_path / name, {}, (0, 1000))
    survey.must_be_known(tmp_path / "a.png", {"16-bit": 3}, None)


# TFDS


def test_the_same_bytes_are_read_alike_from_records_and_files(tmp_path):
    floats = RAMP.astype(np.float32)
    packed = saved(floats[..., None].view(np.uint8), "PNG")
    stored = [saved(scaled(65535, np.uint16), "PNG"), saved(Image.new("RGBA", (8, 6)), "PNG")]
    files = [*stored, packed]
    with tf.io.TFRecordWriter(str(tmp_path / "x")) as writer:
        for data in files:
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[0]))
            features = tf.train.Features(feature={"image": image, "label": label})
            writer.write(tf.train.Example(features=features).SerializeToString())
    from cnnbench.data.sources.tfds_reader import _index

    places = np.column_stack([np.zeros(3, int), _index(tmp_path / "x")])
    options = {"channels": 1, "value_range": None, "short": None}
    source = RecordSource((str(tmp_path / "x"),), places, "image", "label", 1, options)
    for i, data in enumerate(stored):
        assert np.array_equal(source.read(i)[0], decode(data, 1, "x"))
    assert look(source).found == {"16-bit": 1, "alpha": 2, "invisible": 1}
    assert source.name(0) == f"{tmp_path}/{source.name_below(0)}"
    source = RecordSource((str(tmp_path / "x"),), places[2:], "image", "label", 1, options, True)
    assert np.array_equal(source.read(0)[0], decode(tiff(floats), 1, "x"))
    assert look(source).found == {"float": 1}
    with pytest.raises(UsageError, match=r"data\.value_range: x has float values from -1 to 1"):
        images.decode_floats(saved((2 * floats - 1)[..., None].view(np.uint8), "PNG"), 1, "x")
