"""Scaling and cropping: the pixels of torchvision and timm, for images of any size."""

import numpy as np
import pytest
from PIL import Image

from cnnbench.backend.lazy import tf
from cnnbench.data import images
from cnnbench.data.pixels import BadImageError
from cnnbench.exports.formats import saved_model
from cnnbench.registry.kinds import AUGMENTATIONS

BILINEAR = Image.Resampling.BILINEAR


def torchvisions(shape, short, size):
    """Resize and CenterCrop of torchvision 0.24, transforms/functional.py."""
    shortest, longest = min(shape), max(shape)
    new = {shortest: short, longest: int(short * longest / shortest)}
    if shortest == longest:
        new = {shortest: short}
    height, width = (new[side] for side in shape)
    top, left = (round((side - cut) / 2.0) for side, cut in zip((height, width), size, strict=True))
    return (height, width), (top, left)


def shapes(count):
    """Heights and widths of `count` images, ordinary and extreme."""
    random = np.random.default_rng(0)
    sides = np.exp(random.uniform(np.log(1), np.log(6000), (count, 2))).astype(int)
    return [(int(height), int(width)) for height, width in sides]


@pytest.mark.parametrize(("short", "size"), [
    (256, (224, 224)), (232, (224, 224)), (255, (224, 224)), (224, (224, 224)), (33, (32, 32)),
    (342, (299, 299)), (320, (299, 299)), (64, (40, 63)), (8, (8, 3)),
])  # fmt: skip
def test_the_crop_of_evaluation_is_torchvisions(short, size):
    for shape in shapes(5000):
        expected = torchvisions(shape, short, size)
        assert images.crop_geometry(shape, short, size) == expected, shape
    for shape in shapes(200):
        found = saved_model.crop_geometry(tf.constant(shape, tf.int64), short, size)
        expected = torchvisions(shape, short, size)
        assert tuple(tuple(each.numpy().tolist()) for each in found) == expected, shape


def test_pixels_of_the_crop_are_those_of_pillow(random):
    for shape in ((30, 41), (57, 33), (64, 64), (20, 95), (31, 30)):
        image = random.integers(0, 256, (*shape, 3), np.uint8)
        (height, width), (top, left) = torchvisions(shape, 28, (24, 24))
        picture = Image.fromarray(image).resize((width, height), BILINEAR)
        expected = np.asarray(picture.crop((left, top, left + 24, top + 24)))
        assert np.array_equal(images.centre_crop(image, 28, (24, 24)), expected)


class Recording:
    """A random generator that keeps what it drew."""

    def __init__(self, seed):
        self._random, self.drawn = np.random.default_rng(seed), []

    def uniform(self, *limits):
        return self._kept(self._random.uniform(*limits))

    def integers(self, *limits):
        return self._kept(self._random.integers(*limits))

    def _kept(self, value):
        self.drawn.append(value)
        return value


@pytest.mark.parametrize("channels", [1, 3])
def test_a_random_crop_is_resized_from_its_box_alone(random, channels):
    spec = AUGMENTATIONS.spec("random_resized_crop", scale=[0.02, 0.4])
    image = random.integers(0, 256, (90, 120, channels), np.uint8)
    for seed in range(40):
        recording = Recording(seed)
        cropped = AUGMENTATIONS.build(spec, image, (32, 32), recording)
        share, log_aspect, left, top = recording.drawn[-4:]
        area, aspect = 90 * 120 * share, np.exp(log_aspect)
        width, height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        box = image[top : top + height, left : left + width]
        picture = Image.fromarray(box[..., 0] if channels == 1 else box)
        expected = np.asarray(picture.resize((32, 32), BILINEAR)).reshape(32, 32, channels)
        assert np.array_equal(cropped, expected)


@pytest.mark.parametrize("decode", [images.decode, images.decode_floats])
@pytest.mark.parametrize(
    "data", [b"", b"broken\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF"]
)
def test_no_message_names_an_object_of_python(decode, data):
    with pytest.raises(BadImageError, match=r"^zz\.jpg: ") as told:
        decode(data, 3, "zz.jpg")
    assert "<" not in str(told.value) and "0x" not in str(told.value)
