"""Corruptions against their formulas, against SciPy and Pillow, and against the authors' loops."""

import colorsys
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cnnbench.evaluation.corruptions import CORRUPTIONS, SEVERITIES, blur, draws, weather

NAMES = [
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
]  # fmt: skip
# Drawn without numbers, and so the same for every example.
FIXED = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def picture(height=32, width=32, channels=3, seed=0) -> np.ndarray:
    """Soft blobs in strong colours: as smooth as a photograph, and of every brightness."""
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    blobs = ndimage.gaussian_filter(noise, (2.5, 2.5, 0), mode="wrap")
    return np.clip(128 + 70 * blobs / blobs.std(), 0, 255).astype(np.uint8)


def corrupt(name, image, severity=3, position=0) -> np.ndarray:
    return CORRUPTIONS[name](image, severity, draws(name, severity, position))


def grey(level, side=60) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def formula(name):
    """The function of values in 0-1 and constants, below the choice of constants."""
    return CORRUPTIONS[name].__wrapped__


def test_there_are_the_fifteen_of_the_paper():
    assert list(CORRUPTIONS) == NAMES


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (20, 32, 3), (64, 72, 3), (64, 64, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_is_a_pure_function_of_image_severity_and_place(name, shape):
    image = picture(*shape)
    before = image.copy()
    for severity in SEVERITIES:
        found = corrupt(name, image, severity, position=7)
        assert found.shape == shape and found.dtype == np.uint8
        assert np.array_equal(found, corrupt(name, image, severity, position=7))
        assert not np.array_equal(found, image)
        # Not every two angles of a motion blur differ where steps are whole pixels.
        others = [corrupt(name, image, severity, position) for position in range(4)]
        assert all(np.array_equal(found, x) for x in others) == (name in FIXED)
    assert np.array_equal(image, before)


def test_draws_depend_on_name_severity_and_position():
    keys = [(name, s, p) for name in NAMES for s in SEVERITIES for p in (0, 1, 9999)]
    assert len({draws(*key).integers(2**62) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if n not in ("glass_blur", "frost", "elastic_transform")],
)
@pytest.mark.parametrize("side", [32, 96])
def test_each_severity_is_farther_from_the_clean_image(name, side):
    images = [picture(side, side, seed=seed) for seed in range(6)]
    away = [
        np.mean([np.abs(corrupt(name, x, s, i) - x.astype(float)) for i, x in enumerate(images)])
        for s in SEVERITIES
    ]
    # ImageNet-C's third severity of snow has fewer flakes than its second.
    if name == "snow" and side == 96:
        assert away[0] < away[-1]
    else:
        assert away == sorted(away)


@pytest.mark.parametrize("name", ["glass_blur", "frost"])
@pytest.mark.parametrize("side", [32, 96])
def test_the_last_severity_hides_more_than_the_first(name, side):
    images = [picture(side, side, seed=seed) for seed in range(6)]

    def likeness(severity):
        found = [corrupt(name, x, severity, i) for i, x in enumerate(images)]
        return np.corrcoef(np.ravel(images), np.ravel(found))[0, 1]

    assert likeness(5) < likeness(1) < 1


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"jpeg_compression", "frost"}))
def test_a_grey_image_is_corrupted_alike_with_one_channel_and_with_three(name):
    one = picture(32, 32, 1)
    if name in ("gaussian_noise", "shot_noise", "impulse_noise"):  # each channel draws for itself
        found = corrupt(name, one).astype(float)
        assert np.corrcoef(found.ravel(), one.ravel())[0, 1] > 0.9
        return
    three = corrupt(name, np.repeat(one, 3, axis=2)).astype(int)
    assert np.abs(three - corrupt(name, one)).max() <= 1


@pytest.mark.parametrize(
    ("side", "scales"),
    [(60, (0.04, 0.06, 0.08, 0.09, 0.10)), (80, (0.08, 0.12, 0.18))],
)
def test_gaussian_noise_has_its_deviation(side, scales):
    for severity, scale in enumerate(scales, 1):
        noise = corrupt("gaussian_noise", grey(128, side), severity) / 255 - 128 / 255
        assert noise.std() == pytest.approx(scale, rel=0.03)
        assert abs(noise.mean() + 0.5 / 255) < 4 * scale / math.sqrt(noise.size)


@pytest.mark.parametrize(("side", "photons"), [(60, (500, 250, 100, 75, 50)), (80, (60, 25, 12))])
def test_shot_noise_has_the_variance_of_a_count(side, photons):
    for severity, count in enumerate(photons, 1):
        found = corrupt("shot_noise", grey(77, side), severity) / 255
        assert found.var() == pytest.approx(77 / 255 / count, rel=0.06)
        assert found.mean() == pytest.approx(77 / 255, abs=0.006)
    assert not corrupt("shot_noise", grey(0)).any()


@pytest.mark.parametrize(
    ("side", "shares"),
    [(60, (0.01, 0.02, 0.03, 0.05, 0.07)), (80, (0.03, 0.06, 0.09, 0.17, 0.27))],
)
def test_impulse_noise_hits_its_share_half_white_half_black(side, shares):
    for severity, share in enumerate(shares, 1):
        found = corrupt("impulse_noise", grey(128, side), severity)
        assert set(np.unique(found)) == {0, 128, 255}
        slack = 4 * math.sqrt(share / found.size)
        assert (found == 255).mean() == pytest.approx(share / 2, abs=slack)
        assert (found == 0).mean() == pytest.approx(share / 2, abs=slack)


@pytest.mark.parametrize(
    ("side", "scales"), [(32, (0.75, 0.5, 0.4, 0.3, 0.15)), (64, (0.4, 0.3, 0.2, 0.1, 0.05))]
)
def test_contrast(side, scales):
    image = picture(side, side)
    mean = image.mean(axis=(0, 1))
    for severity, scale in enumerate(scales, 1):
        expected = mean + scale * (image - mean)
        found = corrupt("contrast", image, severity)
        assert np.all((expected - 1.001 < found) & (found < expected + 0.002))


@pytest.mark.parametrize(
    ("side", "shifts"), [(32, (0.05, 0.1, 0.15, 0.2, 0.3)), (64, (0.1, 0.2, 0.3, 0.4, 0.5))]
)
def test_brightness_shifts_the_value_of_hsv(side, shifts):
    image = picture(side, side)
    image[0, 0] = 0
    for severity, shift in enumerate(shifts, 1):
        found = corrupt("brightness", image, severity)
        for y, x in [(0, 0), *np.random.default_rng(1).integers(0, side, (200, 2))]:
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255))
            expected = colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1))
            assert np.abs(found[y, x] - 255 * np.array(expected) + 0.5).max() < 0.51


def test_defocus_blur_spreads_a_point_over_the_disk():
    image = np.zeros((65, 65, 3), np.uint8)
    image[32, 32] = 255
    y, x = np.mgrid[-32:33, -32:33]
    disk = x**2 + y**2 <= 9  # ImageNet-C's first: radius 3, an edge of 0.1
    found = corrupt("defocus_blur", image, 1)
    assert np.array_equal(found[..., 0], np.where(disk, 255 // disk.sum(), 0))


def test_defocus_blur_of_small_images_is_a_smoothed_pixel():
    point = np.zeros((32, 32, 3), np.uint8)
    point[16, 16] = 255
    edge = math.exp(-1 / (2 * 0.4**2))  # CIFAR-10-C's first: radius 0.3, an edge of 0.4
    taps = np.array([edge, 1, edge]) / (1 + 2 * edge)
    found = corrupt("defocus_blur", point, 1)[15:18, 15:18, 0]
    assert np.array_equal(found, np.floor(255 * np.outer(taps, taps)))


@pytest.mark.parametrize(("reach", "rounds"), [(1, 2), (2, 1), (4, 3)])
def test_glass_blur_moves_pixels_as_the_authors_loops_do(reach, rounds):
    height, width = 24, 30
    found = expected = np.arange(height * width).reshape(height, width, 1)
    ours, theirs = (np.random.default_rng(5) for _ in range(2))
    for _ in range(rounds):
        places = blur.scattered(height, width, reach, ours)
        found = found.reshape(-1)[places].reshape(found.shape)
        shape = (2, height - 2 * reach, width - 2 * reach)
        down, right = theirs.integers(-reach, reach, shape)
        x = expected.copy()
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dy, dx = down[h - reach - 1, w - reach - 1], right[h - reach - 1, w - reach - 1]
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
        expected = x
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, np.arange(height * width).reshape(found.shape))


def test_motion_blur_is_half_a_gaussian_along_the_line():
    x = np.zeros((41, 41, 1), np.float32)
    x[20, 20] = 1
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 2.0**2))
    weights /= weights.sum()
    along = blur.along_line(x, 6, 2.0, 0.0)[..., 0]
    assert np.allclose(along[20, 8:21], weights[::-1], atol=1e-6)
    assert along.sum() == pytest.approx(1) and along[20].sum() == pytest.approx(1)
    down = blur.along_line(x, 6, 2.0, 90.0)[..., 0]
    assert np.allclose(down[8:21, 20], weights[::-1], atol=1e-6)
    slanted = blur.along_line(x, 6, 2.0, 45.0)[..., 0]
    assert slanted.sum() == pytest.approx(1)
    assert np.trace(slanted) == pytest.approx(1)  # at 45 degrees each step is on the diagonal


@pytest.mark.parametrize(
    ("side", "steps"),
    [(32, ((1.06, 0.01), (1.26, 0.01))), (65, ((1.11, 0.01), (1.31, 0.03)))],
)
def test_zoom_blur_averages_scipys_zooms(side, steps):
    image = picture(side, side)
    x = image / 255
    for severity, (stop, step) in zip((1, 5), steps, strict=True):
        layers = [x]
        for factor in np.arange(1, stop, step):
            kept = math.ceil(side / factor)
            top = (side - kept) // 2
            centre = x[top : top + kept, top : top + kept]
            zoomed = ndimage.zoom(centre, (factor, factor, 1), order=1)
            top = (len(zoomed) - side) // 2
            layers.append(zoomed[top : top + side, top : top + side])
        expected = 255 * np.mean(layers, axis=0)
        assert np.abs(corrupt("zoom_blur", image, severity) + 0.5 - expected).max() < 0.51


def test_snow_without_flakes_whitens():
    x = picture().astype(np.float32) / 255
    luma = (x * (0.299, 0.587, 0.114)).sum(axis=2, keepdims=True)
    no_flakes = (0.1, 0.2, 1, 9.0, 8, 3, 0.8)
    found = formula("snow")(x, np.random.default_rng(0), *no_flakes)
    assert np.allclose(found, 0.8 * x + 0.2 * np.maximum(x, 1.5 * luma + 0.5), atol=1e-6)


def test_snow_falls_twice_the_other_way_round():
    flakes = corrupt("snow", np.zeros((32, 32, 1), np.uint8), 2)[..., 0].astype(int)
    base = round(0.1 * 0.5 * 255)
    assert flakes.min() >= base - 1 and flakes.max() > base + 20
    assert np.abs(flakes - np.rot90(flakes, 2)).max() <= 1


def test_frost_lays_the_same_pane_over_every_image():
    black = formula("frost")(np.zeros((32, 32, 3)), draws("frost", 1, 4), 1, 0.5)
    white = formula("frost")(np.ones((32, 32, 3)), draws("frost", 1, 4), 0.7, 0.5)
    assert np.allclose(white - black, 0.7)
    pane = weather.frosted_pane(128).copy()
    places = [
        (top, left)
        for top in range(97)
        for left in range(97)
        if np.allclose(0.5 * pane[top : top + 32, left : left + 32], black)
    ]
    assert len(places) == 1
    assert 0 <= pane.min() < 0.3 and 0.7 < pane.max() <= 1
    weather.frosted_pane.cache_clear()
    assert np.array_equal(pane, weather.frosted_pane(128))


def test_fog_is_a_plasma_laid_over_and_scaled():
    x = picture().astype(np.float64) / 255
    found = formula("fog")(x, np.random.default_rng(2), 0.75, 2.5)
    plasma = (found * (x.max() + 0.75) / x.max() - x) / 0.75
    assert np.allclose(plasma, plasma[..., :1])
    assert plasma.min() == pytest.approx(0) and plasma.max() == pytest.approx(1)
    assert np.allclose(plasma[..., 0], weather.plasma_fractal(np.random.default_rng(2), 32, 2.5))


def test_a_plasma_without_fine_noise_is_the_diamond_square_mean():
    h = weather.plasma_fractal(np.random.default_rng(0), 16, 1e9)
    corners, centres = h[::2, ::2], h[1::2, 1::2]
    right, below = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
    assert np.allclose(centres, (corners + right + below + np.roll(below, -1, 1)) / 4)
    assert np.allclose(h[::2, 1::2], (corners + right + centres + np.roll(centres, 1, 0)) / 4)
    assert np.allclose(h[1::2, ::2], (corners + below + centres + np.roll(centres, 1, 1)) / 4)
    assert h.min() == 0 and h.max() == 1


def test_a_plasma_is_rougher_the_slower_its_noise_decays():
    def roughness(decay):
        maps = [weather.plasma_fractal(np.random.default_rng(i), 32, decay) for i in range(8)]
        return np.mean([np.abs(np.diff(h)).mean() for h in maps])

    assert roughness(3) < roughness(2) < roughness(1.5)


def test_elastic_transform_maps_three_points_to_their_new_places():
    side, share = 60, 0.05
    ramps = np.moveaxis(np.indices((side, side)), 0, 2) / side
    found = formula("elastic_transform")(ramps, np.random.default_rng(3), 0, 0, share)
    before = np.array([[50, 50], [10, 50], [10, 10]])
    noise = np.random.default_rng(3).uniform(-share, share, (3, 2))
    after = before + side * noise
    for axis in (0, 1):
        there = ndimage.map_coordinates(found[..., axis], after.T, order=1)
        assert np.allclose(side * there, before[:, axis], atol=1e-3)


def test_elastic_transform_shifts_smoothly_and_not_too_far():
    side, strength = 60, 0.05
    ramps = np.moveaxis(np.indices((side, side)), 0, 2) / side
    found = formula("elastic_transform")(ramps, np.random.default_rng(3), strength, 0.05, 0)
    shift = side * (found - ramps)
    random = np.random.default_rng(3)
    random.uniform(size=(3, 2))
    noise = random.uniform(-1, 1, (2, side, side))
    smooth = np.stack([ndimage.gaussian_filter(x, 3, mode="reflect", truncate=3) for x in noise], 2)
    inner = np.s_[5:-5, 5:-5]  # beyond it the ramp is reflected
    assert np.allclose(shift[inner], side * strength * smooth[inner], atol=1e-3)


def test_pixelate_is_constant_in_blocks_of_means():
    image = picture(96, 96)
    found = corrupt("pixelate", image, 5)  # a quarter: blocks of 4 x 4
    blocks = image.reshape(24, 4, 24, 4, 3).mean(axis=(1, 3))
    assert np.array_equal(found, found[::4, ::4].repeat(4, axis=0).repeat(4, axis=1))
    assert np.abs(found[::4, ::4] - blocks).max() <= 1


@pytest.mark.parametrize("scales", [(0.95, 0.9, 0.85, 0.75, 0.65)])
def test_pixelate_of_small_images_is_pillows(scales):
    image = picture()
    for severity, scale in enumerate(scales, 1):
        small = Image.fromarray(image).resize((int(32 * scale),) * 2, Image.Resampling.BOX)
        expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
        assert np.array_equal(corrupt("pixelate", image, severity), expected)


@pytest.mark.parametrize(
    ("shape", "qualities"),
    [
        ((32, 32, 3), (80, 65, 58, 50, 40)),
        ((32, 32, 1), (80, 65, 58, 50, 40)),
        ((64, 80, 3), (25, 18, 15, 10, 7)),
    ],
)
def test_jpeg_compression_is_pillows_at_that_quality(shape, qualities):
    image = picture(*shape)
    for severity, quality in enumerate(qualities, 1):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).reshape(shape)
        assert np.array_equal(corrupt("jpeg_compression", image, severity), expected)


@pytest.mark.parametrize("level", [0, 1, 77, 128, 254, 255])
@pytest.mark.parametrize("side", [32, 64])
def test_blurs_leave_a_plain_image_as_it_is(level, side):
    image = grey(level, side)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform",
                 "contrast", "pixelate"):  # fmt: skip
        for severity in SEVERITIES:
            assert np.array_equal(corrupt(name, image, severity), image), name
