"""Augmentations: what they do to pixels and labels, and that they draw from their place alone."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.data.augment.batch import Draw
from cnnbench.data.examples import ArraySource, Examples
from cnnbench.data.pipeline import TrainingStream
from cnnbench.errors import UsageError
from cnnbench.registry.kinds import AUGMENTATIONS, DATASETS, kind_of


def batch(count=64, size=12, channels=3):
    return tf.constant(
        np.random.default_rng(0).integers(1, 256, (count, size, size, channels), np.uint8)
    )


def draw(step=7, epoch=0, key=5, count=64):
    seed = tf.constant([key, step], tf.int64)
    return Draw(seed, key, tf.range(count, dtype=tf.int64), tf.constant(epoch, tf.int64))


def build(name, images, at=None, **options):
    at = at or draw(count=len(images))
    return AUGMENTATIONS.build(AUGMENTATIONS.spec(name, **options), images, at).numpy()


def pixels(count=60, size=10, channels=3):
    images = np.random.default_rng(1).integers(0, 256, (count, size, size, channels), np.uint8)
    return Examples.all_of(ArraySource(images, np.arange(count, dtype=np.int32) % 10))


def stream(name, seed=1, first=0, steps=4, channels=3):
    spec = AUGMENTATIONS.spec(name)
    data = DATASETS.spec("synthetic", batch_size=20)
    made = TrainingStream(
        pixels(channels=channels), data, (10, 10), [spec], seed, partial(tf.one_hot, depth=10)
    )
    return [(x.numpy(), y.numpy()) for x, y in made.dataset(first).take(steps)]


def test_what_is_too_large_for_images_whose_size_the_data_tell_is_refused():
    data, crop = DATASETS.spec("synthetic", batch_size=20), {"padding": 10, "mode": "reflect"}
    spec = AUGMENTATIONS.spec("random_crop", **crop)
    with pytest.raises(UsageError, match="random_crop with padding 10; at most 9"):
        TrainingStream(pixels(), data, (10, 10), [spec], 1, partial(tf.one_hot, depth=10))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_what_an_augmentation_draws_is_a_function_of_seed_and_step(name, channels):
    whole = stream(name, channels=channels)
    for seed, first in ((1, 2), (2, 2)):
        later = stream(name, seed=seed, first=first, steps=2, channels=channels)
        for (images, labels), (images2, labels2) in zip(whole[2:], later, strict=True):
            assert images.shape == (20, 10, 10, channels) and images.dtype == np.uint8
            same = np.array_equal(images, images2) and np.array_equal(labels, labels2)
            assert same == (seed == 1)
    mixes = kind_of(AUGMENTATIONS.spec(name)) == "mix"
    for _, labels in whole:
        assert labels.dtype == (np.float32 if mixes else np.int32)
        assert not mixes or np.allclose(labels.sum(1), 1, atol=1e-6)


def test_random_crop_is_a_window_of_the_padded_image():
    images = batch(200)
    cropped = build("random_crop", images, padding=2)
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, whole in zip(cropped, padded, strict=True):
        places = [
            (y, x) for y in range(5) for x in range(5)
            if np.array_equal(image, whole[y : y + 12, x : x + 12])
        ]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25  # every offset comes up


def test_random_flip_mirrors_about_half():
    images = batch(400)
    flipped = build("random_flip", images)
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images.numpy(), strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(flipped, images.numpy(), strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250
    assert np.array_equal(build("random_flip", images, probability=0.0), images)


def test_random_rotation_keeps_the_centre_and_turns_by_the_angle():
    image = np.zeros((1, 33, 33, 1), np.uint8)
    image[0, 16, 16], image[0, 16, 26] = 255, 255  # the centre, and a point right of it
    turned = build("random_rotation", np.repeat(image, 200, 0), degrees=90)
    assert np.all(turned[:, 16, 16, 0] > 200)
    angles = []
    for one in turned[..., 0].astype(float):
        one[12:21, 12:21] = 0
        y, x = np.unravel_index(one.argmax(), one.shape)
        assert abs(np.hypot(y - 16, x - 16) - 10) < 1.5
        angles.append(np.degrees(np.arctan2(y - 16, x - 16)))
    assert min(angles) < -75 and max(angles) > 75


def test_cutout_blanks_one_square():
    blanked = build("cutout", batch(300), size=4) == 0
    area = blanked[..., 0].sum(axis=(1, 2))
    assert area.max() == 16 and area.min() >= 4  # a corner of it at the least
    assert np.array_equal(blanked[..., 0], blanked[..., 2])
    whole = blanked[area == 16][0][..., 0]
    rows, columns = np.nonzero(whole)
    assert np.ptp(rows) == 3 and np.ptp(columns) == 3


def test_random_resized_crop_obeys_scale_and_ratio():
    ys, xs = np.mgrid[:200, :200]
    image = np.stack([ys, xs, ys], -1).astype(np.uint8)
    spec = AUGMENTATIONS.spec("random_resized_crop", scale=[0.25, 0.5], ratio=[0.5, 2.0])
    for seed in range(50):
        crop = AUGMENTATIONS.build(spec, image, (64, 64), np.random.default_rng(seed)).astype(int)
        height, width = (64 / 62 * np.ptp(crop[1:-1, 1:-1, axis]) for axis in (0, 1))
        assert 0.2 < height * width / 200**2 < 0.56
        assert 0.45 < width / height < 2.2


def test_random_crop_can_mirror_what_lies_outside():
    images = batch(100, size=6)
    cropped = build("random_crop", images, padding=2, mode="reflect")
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    for image, whole in zip(cropped, padded, strict=True):
        places = [whole[y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
        assert any(np.array_equal(image, place) for place in places)


def test_alternating_flip_shows_both_sides_in_any_two_epochs_in_a_row():
    images = batch(1000, size=4).numpy()
    mirrored = []
    for epoch, step in ((0, 3), (0, 9), (1, 12), (2, 20)):
        flipped = build("alternating_flip", images, draw(step, epoch, count=1000))
        mirrored.append((flipped == images[:, :, ::-1]).all((1, 2, 3)))
        assert np.array_equal((flipped == images).all((1, 2, 3)), ~mirrored[-1])
    assert np.array_equal(mirrored[0], mirrored[1])  # of the epoch, not the step
    assert np.array_equal(mirrored[0], ~mirrored[2]) and np.array_equal(mirrored[0], mirrored[3])
    assert 440 < mirrored[0].sum() < 560
    again = build("alternating_flip", images, draw(3, 0, key=6, count=1000))
    other = (again == images[:, :, ::-1]).all((1, 2, 3))
    assert 400 < (mirrored[0] != other).sum() < 600


def mix(name, count=512, size=16, **options):
    """Mixes images of one value each, which is the number of their class."""
    labels = np.arange(count) % 250
    images = np.broadcast_to(labels[:, None, None, None], (count, size, size, 1)).astype(np.uint8)
    hot = tf.one_hot(labels, 250)
    spec = AUGMENTATIONS.spec(name, **options)
    mixed, soft = AUGMENTATIONS.build(spec, tf.constant(images), hot, draw(count=count))
    return labels, mixed.numpy()[..., 0].astype(float), soft.numpy()


@pytest.mark.parametrize(("name", "options"), [
    ("mixup", {}), ("mixup", {"alpha": 1.0}), ("cutmix", {}), ("cutmix", {"alpha": 0.3}),
    ("mixup_or_cutmix", {}), ("mixup_or_cutmix", {"cutmix_share": 0.0}),
])  # fmt: skip
def test_mixed_labels_are_the_shares_of_the_pixels(name, options):
    _, mixed, soft = mix(name, **options)
    assert np.allclose(soft.sum(1), 1, atol=1e-5) and (soft >= 0).all()
    assert ((soft > 1e-6).sum(1) <= 2).all()
    # The mean pixel is the mean of the two classes by their shares, but for rounding.
    assert np.abs(mixed.mean((1, 2)) - soft @ np.arange(250)).max() <= 0.51


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_its_weights_from_beta(alpha):
    from scipy.stats import beta, kstest

    labels, _, soft = mix("mixup", count=4000, alpha=alpha)
    own = soft[np.arange(len(labels)), labels]
    # A weight of nearly 1 looks like a partner of the same class: left out on both sides.
    mixed, drawn = own[own < 1 - 1e-6], beta(alpha, alpha)
    assert len(mixed) > 2000
    assert kstest(mixed, lambda x: drawn.cdf(x) / drawn.cdf(1 - 1e-6)).pvalue > 1e-3


def test_cutmix_puts_one_box_of_the_partner_in():
    labels, mixed, soft = mix("cutmix", count=300)
    shares = []
    for label, image in zip(labels, mixed, strict=True):
        inside = image != label
        rows, columns = np.nonzero(inside)
        shares.append(inside.mean())
        if len(rows):
            box = inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all() and len(np.unique(image[inside])) == 1
    own = soft[np.arange(len(labels)), labels]
    assert np.allclose(1 - own, shares, atol=1e-6)
    # Uniform shares, of which the border cuts some away: the mean is about a third.
    assert 0.25 < np.mean(shares) < 0.45


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_leaves_as_many_alone_as_asked(name):
    _, _, soft = mix(name, count=2000, alpha=1.0, probability=0.25)
    assert 0.15 < (soft.max(1) < 1 - 1e-6).mean() < 0.28
    _, _, soft = mix(name, probability=0.0)
    assert (soft.max(1) == 1).all()


def test_a_batch_is_mixed_by_either_as_often_as_asked():
    spec = AUGMENTATIONS.spec("mixup_or_cutmix", cutmix_share=0.25)
    classes = np.repeat([0, 200], 8)[:, None, None, None]
    images = tf.constant(np.broadcast_to(classes, (16, 6, 6, 1)), tf.uint8)
    hot = tf.one_hot([0] * 8 + [1] * 8, 2)
    cut = 0
    for step in range(200):
        mixed, _ = AUGMENTATIONS.build(spec, images, hot, draw(step, count=16))
        cut += set(np.unique(mixed)) <= {0, 200}
    assert 30 < cut < 70
