"""Elementary operations of augmentation, against formulas."""

import colorsys

import numpy as np
import pytest
from pictures import BILINEAR, NEAREST, generator, gradient, luma, noise, run
from PIL import ImageOps

from cnnbench.data.augment import operations


@pytest.mark.parametrize("image", [gradient(), noise(9, 14, 3)], ids=["grey", "color"])
def test_operations_on_values(image):
    values = image.astype(int)
    assert np.array_equal(run(operations.identity, image, 5), values)
    assert np.array_equal(run(operations.invert, image), 255 - values)
    for threshold in (0, 100, 128, 255, 256):
        expected = np.where(values >= threshold, 255 - values, values)
        assert np.array_equal(run(operations.solarize, image, threshold), expected)
    assert np.array_equal(
        run(operations.solarize, image, 99.3), run(operations.solarize, image, 100)
    )
    for addition in (0, 37.9, 110):
        expected = np.where(values < 128, np.minimum(values + int(addition), 255), values)
        assert np.array_equal(run(operations.solarize_add, image, addition), expected)
    for bits in range(1, 9):
        step = 2 ** (8 - bits)
        assert np.array_equal(run(operations.posterize, image, bits), values // step * step)
    assert np.array_equal(run(operations.posterize, image, 4.2), values // 8 * 8)


def test_autocontrast_stretches_each_channel():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = [[50, 101], [75, 60]]
    image[..., 1] = [[0, 255], [1, 254]]
    image[..., 2] = 77
    stretched = run(operations.autocontrast, image)
    assert stretched[..., 0].tolist() == [[0, 255], [125, 50]]
    assert np.array_equal(stretched[..., 1:], image[..., 1:])


def test_equalize_gives_the_share_of_smaller_values():
    # 256 pixels of which 1 has the highest value: steps of one pixel.
    image = np.repeat([10, 20, 30, 200], [100, 50, 105, 1]).astype(np.uint8).reshape(16, 16, 1)
    equalized = run(operations.equalize, image)
    assert dict(zip(image.ravel().tolist(), equalized.ravel().tolist(), strict=True)) == {
        10: 0, 20: 100, 30: 150, 200: 255
    }  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_and_equalize_equal_pillows(channels):
    for seed in range(60):
        low, high = sorted(generator(seed).integers(0, 257, 2).tolist())
        image = noise(3 + seed, 40, channels, low=min(low, 255), high=max(high, low + 1), seed=seed)
        picture = operations.to_picture(image)
        for ours, pillows in (
            (operations.autocontrast, ImageOps.autocontrast),
            (operations.equalize, ImageOps.equalize),
        ):
            assert np.array_equal(run(ours, image), operations.to_array(pillows(picture)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [0, 5, -3, 2.9, -2.9, 40])
def test_translate_moves_the_pixels(pixels, channels):
    image = noise(12, 20, channels)
    whole = int(pixels)
    for axis, operation in ((1, operations.translate_x), (0, operations.translate_y)):
        places = np.arange(image.shape[axis]) + whole
        inside = (places >= 0) & (places < image.shape[axis])
        expected = np.take(image, np.clip(places, 0, image.shape[axis] - 1), axis)
        shape = (1, -1, 1) if axis == 1 else (-1, 1, 1)
        expected = np.where(inside.reshape(shape), expected, 128)
        for resample in (NEAREST, BILINEAR):
            assert np.array_equal(run(operation, image, pixels, 128, resample), expected)
    assert np.array_equal(
        run(operations.shift_x, image, 0.25, 7, NEAREST),
        run(operations.translate_x, image, 5, 7, NEAREST),
    )
    assert np.array_equal(
        run(operations.shift_y, image, -0.25, 7, NEAREST),
        run(operations.translate_y, image, -3, 7, NEAREST),
    )


@pytest.mark.parametrize("slope", [0.0, 0.31, -0.27, 0.9])
def test_shear_moves_rows_and_columns_by_the_slope(slope):
    image = noise(16, 24, 3)
    y, x = np.mgrid[:16, :24] + 0.5
    for operation, rows, columns in (
        (operations.shear_x, y, x + slope * y),
        (operations.shear_y, y + slope * x, x),
    ):
        rows, columns = np.floor(rows).astype(int), np.floor(columns).astype(int)
        inside = (rows >= 0) & (rows < 16) & (columns >= 0) & (columns < 24)
        expected = np.full_like(image, 128)
        expected[inside] = image[rows[inside], columns[inside]]
        assert np.array_equal(run(operation, image, slope, 128, NEAREST), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_rotate_turns_about_the_centre(channels):
    image = noise(15, 15, channels)
    for turns in range(4):
        turned = run(operations.rotate, image, 90 * turns, 0, NEAREST)
        assert np.array_equal(turned, np.rot90(image, turns))
    point = np.zeros((33, 33, channels), np.uint8)
    point[16, 26] = 255
    turned = run(operations.rotate, point, 36.87, 50, NEAREST)  # 10 pixels: 8 right and 6 up
    assert [(int(y), int(x)) for y, x in np.argwhere(turned[..., 0] == 255)] == [(10, 24)]
    assert np.all(turned[0, 0] == 50)  # from outside


def blurred(image):
    """The kernel (1 1 1; 1 5 1; 1 1 1) / 13, the border kept."""
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)))
    height, width = image.shape[:2]
    total = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    result = image.astype(float)
    result[1:-1, 1:-1] = ((total + 4.0 * image) / 13)[1:-1, 1:-1]
    return result


@pytest.mark.parametrize(("operation", "without"), [
    (operations.brightness, np.zeros_like),
    (operations.contrast, lambda image: np.full(image.shape, np.floor(luma(image).mean() + 0.5))),
    (operations.color, lambda image: np.repeat(luma(image), 3, 2)),
    (operations.sharpness, blurred),
], ids=["brightness", "contrast", "color", "sharpness"])  # fmt: skip
def test_blends(operation, without):
    image = noise(16, 18, 3)
    assert np.array_equal(run(operation, image, 1.0), image)
    base = without(image).astype(float)
    for factor in (0.0, 0.1, 0.55, 1.45, 1.9):
        expected = np.clip(base + factor * (image - base), 0, 255)
        assert np.abs(run(operation, image, factor) - expected).max() < 2  # cut off, not rounded


def test_brightness_of_zero_is_black_and_color_leaves_grey_alone():
    assert not run(operations.brightness, noise(8, 8, 3), 0.0).any()
    image = noise(8, 8, 1)
    assert np.array_equal(run(operations.color, image, 0.1), image)
    assert np.array_equal(run(operations.hue, image, 0.3), image)
    assert np.array_equal(run(operations.greyscale, image), image)
    color = noise(8, 8, 3)
    assert np.abs(run(operations.greyscale, color) - luma(color)).max() <= 1


@pytest.mark.parametrize("turn", [1 / 3, -1 / 3, 0.2, -0.45])
def test_hue_turns_the_colour_circle(turn):
    primary = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    if abs(turn) == 1 / 3:
        expected = np.roll(primary, 1 if turn < 0 else -1, 1).astype(int)
        assert np.abs(run(operations.hue, primary, turn) - expected).max() <= 6
    image = noise(10, 10, 3, low=30, high=220)
    for before, after in zip(
        image.reshape(-1, 3), run(operations.hue, image, turn).reshape(-1, 3), strict=True
    ):
        h, s, v = colorsys.rgb_to_hsv(*before / 255)
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        assert np.abs(after - expected).max() < 9  # of hues and saturations in 8 bits
