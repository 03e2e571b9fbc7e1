"""Crops, and augmentations of whole batches.

There are four kinds of augmentation. "crop" fits one image of any size to the network's input, in
NumPy, and comes first in a recipe. "image" changes one image, in NumPy. "batch" changes a batch,
(batch, height, width, channels) uint8, in TensorFlow, with independent draws for each image. "mix"
makes new images and soft labels from a batch. All draws depend only on the recipe's seed, the
augmentation's index in the recipe, and the epoch and position in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cnnbench.backend.lazy import tf
from cnnbench.data import images as geometry
from cnnbench.data.augment import policies  # noqa: F401 - registers its augmentations
from cnnbench.registry.kinds import AUGMENTATIONS
from cnnbench.registry.limits import Alpha, Fraction, Ratios, Shares


@dataclass(frozen=True)
class Draw:
    """The source of a batch's random numbers.

    Attributes:
        seed: (2,) int64, from the augmentation and the training step.
        key: from the augmentation only.
        examples: (batch,) int64, the position of each image in the training examples.
        epoch: () int64, from 0.
    """

    seed: Any
    key: int
    examples: Any
    epoch: Any

    def uniform(self, shape: Any, *limits: Any, stream: int = 0, dtype: Any = None) -> Any:
        """Returns uniform random numbers; each `stream` is independent of the others.

        Args:
            shape: of the result.
            *limits: lower and upper limit; by default 0 and 1.
            stream: number of the stream.
            dtype: by default float32.
        """
        seed = self.seed + tf.constant([0, stream << 48], tf.int64)
        return tf.random.stateless_uniform(shape, seed, *limits, dtype=dtype or tf.float32)

    def coin_of_example(self) -> Any:
        """Returns a fair coin flip per example, the same in every epoch, (batch,) bool."""
        # The finalizer of SplitMix64 (Steele et al. 2014), a hash that mixes bits well.
        x = tf.cast(self.examples, tf.uint64) + tf.constant(self.key, tf.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64)))
            x *= tf.constant(factor, tf.uint64)
        return tf.cast(tf.bitwise.right_shift(x, tf.constant(63, tf.uint64)), tf.bool)


@AUGMENTATIONS.register(
    "random_crop",  # reflection can pad by at most the side less the edge pixel
    most=lambda options, side: ("padding", side - (options["mode"] == "reflect")),
)
def random_crop(
    images: Any,
    draw: Draw,
    *,
    padding: Annotated[int, Field(ge=1, le=256)] = 4,
    mode: Literal["constant", "reflect"] = "constant",
) -> Any:
    """Pads with zeros or by reflection, and crops the original size at a random position.

    He et al. 2015, section 4.2, pads with zeros; Jordan 2024, section 3.1, reflects two pixels.
    """
    batch, height, width, _ = tf.unstack(tf.shape(images))
    padded = tf.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)
    offsets = draw.uniform((2, batch), 0, 2 * padding + 1, dtype=tf.int32)
    rows = offsets[0][:, None] + tf.range(height)
    columns = offsets[1][:, None] + tf.range(width)
    cropped = tf.gather(padded, rows, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


@AUGMENTATIONS.register("random_flip")
def random_flip(images: Any, draw: Draw, *, probability: Fraction = 0.5) -> Any:
    """Flips images horizontally at random."""
    flip = draw.uniform((tf.shape(images)[0],)) < probability
    return tf.where(flip[:, None, None, None], tf.reverse(images, (2,)), images)


@AUGMENTATIONS.register("alternating_flip")
def alternating_flip(images: Any, draw: Draw) -> Any:
    """Flips each image horizontally in every second epoch; a coin flip per image decides which.

    Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6: any two consecutive
    epochs show both orientations of each image.
    """
    flip = tf.math.logical_xor(draw.coin_of_example(), tf.equal(draw.epoch % 2, 1))
    return tf.where(flip[:, None, None, None], tf.reverse(images, (2,)), images)


@AUGMENTATIONS.register("random_rotation")
def random_rotation(
    images: Any, draw: Draw, *, degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
) -> Any:
    """Rotates about the center by an angle uniform in [-degrees, degrees]; fills with zeros."""
    batch, height, width, _ = tf.unstack(tf.shape(images))
    limit = math.radians(degrees)
    angles = draw.uniform((batch,), -limit, limit)
    cos, sin = tf.cos(angles), tf.sin(angles)
    y, x = (tf.cast(side - 1, tf.float32) / 2 for side in (height, width))
    zero = tf.zeros_like(cos)
    # Row-major coefficients of the map from output pixels to input pixels.
    transforms = tf.stack(
        (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero), axis=1
    )
    rotated = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    # On uint8 the operation would truncate instead of rounding.
    return tf.ensure_shape(tf.cast(tf.round(rotated), tf.uint8), images.shape)


@AUGMENTATIONS.register(
    "cutout",  # a larger square could cover the whole image wherever its center is
    most=lambda options, side: ("size", 2 * side - 2),
)
def cutout(images: Any, draw: Draw, *, size: Annotated[int, Field(ge=1, le=1024)] = 16) -> Any:
    """Zeroes a square with sides of `size` pixels, centered anywhere (DeVries & Taylor 2017).

    Deviation: the authors' code zeroes normalized images, so it fills with the mean.
    """
    batch, height, width, _ = tf.unstack(tf.shape(images))
    center = draw.uniform((2, batch))
    top, left = (
        tf.cast(center[axis] * tf.cast(side, tf.float32), tf.int32) - size // 2
        for axis, side in enumerate((height, width))
    )
    inside = _boxes(images, top, left, top + size, left + size)
    return tf.where(inside, tf.zeros_like(images), images)


def _boxes(images: Any, top: Any, left: Any, bottom: Any, right: Any) -> Any:
    """Returns whether each pixel is inside its image's box, (batch, height, width, 1) bool.

    The limits are (batch,) int32; `bottom` and `right` are exclusive.
    """
    rows, columns = tf.range(tf.shape(images)[1]), tf.range(tf.shape(images)[2])
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None, None] & in_columns[:, None, :, None]


@AUGMENTATIONS.register("mixup", kind="mix")
def mixup(
    images: Any, labels: Any, draw: Draw, *, alpha: Alpha = 0.2, probability: Fraction = 1.0
) -> tuple[Any, Any]:
    """Blends images, and their labels, in pairs, with weights drawn from Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2. Each image draws its
    own weight; partners are a random permutation of the batch. Pixels are rounded.
    """
    kept = tf.where(_chosen(images, draw, probability), _beta(images, draw, alpha), 1.0)
    partner = _partners(images, draw)
    pixels = tf.cast(images, tf.float32)
    mixed = _blend(pixels, tf.gather(pixels, partner), kept[:, None, None, None])
    return tf.cast(tf.round(mixed), tf.uint8), _blend(
        labels, tf.gather(labels, partner), kept[:, None]
    )


@AUGMENTATIONS.register("cutmix", kind="mix")
def cutmix(
    images: Any, labels: Any, draw: Draw, *, alpha: Alpha = 1.0, probability: Fraction = 1.0
) -> tuple[Any, Any]:
    """Pastes a box from another image of the batch, and weights the labels by area.

    Yun et al. 2019, "CutMix", section 3.1 and its algorithm: the box's fraction of the area is
    drawn from Beta(alpha, alpha); it has the image's aspect ratio, is centered anywhere, and is
    clipped at the borders.
    """
    batch, height, width, _ = tf.unstack(tf.shape(images))
    share = tf.where(_chosen(images, draw, probability), _beta(images, draw, alpha), 0.0)
    center = draw.uniform((2, batch), stream=3)
    limits = []
    for axis, side in enumerate((height, width)):
        length = tf.cast(side, tf.float32)
        half = tf.cast(tf.sqrt(share) * length, tf.int32) // 2
        middle = tf.cast(center[axis] * length, tf.int32)
        limits.append((tf.maximum(middle - half, 0), tf.minimum(middle + half, side)))
    (top, bottom), (left, right) = limits
    inside = _boxes(images, top, left, bottom, right)
    kept = 1 - tf.reduce_mean(tf.cast(inside, tf.float32), (1, 2))
    partner = _partners(images, draw)
    return tf.where(inside, tf.gather(images, partner), images), _blend(
        labels, tf.gather(labels, partner), kept
    )


@AUGMENTATIONS.register("mixup_or_cutmix", kind="mix")
def mixup_or_cutmix(
    images: Any,
    labels: Any,
    draw: Draw,
    *,
    mixup_alpha: Alpha = 0.8,
    cutmix_alpha: Alpha = 1.0,
    cutmix_share: Fraction = 0.5,
    probability: Fraction = 1.0,
) -> tuple[Any, Any]:
    """Applies CutMix to a batch with probability `cutmix_share`, otherwise MixUp.

    Touvron et al. 2021, "Training data-efficient image transformers", table 9.
    """
    return tf.cond(
        draw.uniform((), stream=4) < cutmix_share,
        lambda: cutmix(images, labels, draw, alpha=cutmix_alpha, probability=probability),
        lambda: mixup(images, labels, draw, alpha=mixup_alpha, probability=probability),
    )


def _chosen(images: Any, draw: Draw, probability: float) -> Any:
    return draw.uniform((tf.shape(images)[0],), stream=1) < probability


def _partners(images: Any, draw: Draw) -> Any:
    return tf.argsort(draw.uniform((tf.shape(images)[0],), stream=2))


def _beta(images: Any, draw: Draw, alpha: float) -> Any:
    """Returns a draw from Beta(alpha, alpha) per image, (batch,) float32 in [0, 1]."""
    shape = (2, tf.shape(images)[0])
    # In float64, because gamma draws of a small alpha are often too small for float32.
    one, other = tf.unstack(
        tf.random.stateless_gamma(shape, draw.seed, alpha, dtype=tf.float64), axis=0
    )
    return tf.cast(tf.math.divide_no_nan(one, one + other), tf.float32)


def _blend(one: Any, other: Any, share: Any) -> Any:
    return share * one + (1 - share) * other


@AUGMENTATIONS.register("random_resized_crop", kind="crop")
def random_resized_crop(
    image: np.ndarray,
    size: tuple[int, int],
    random: np.random.Generator,
    *,
    scale: Shares = [0.08, 1.0],
    ratio: Ratios = [3 / 4, 4 / 3],
) -> np.ndarray:
    """Crops a random box with area in `scale` and aspect in `ratio`, and resizes it to the input.

    `scale` is a range of fractions of the image's area. Szegedy et al. 2015, "Going Deeper with
    Convolutions", section 6, as in torchvision: ten tries, then the largest central box of an
    allowed aspect ratio. No pixel outside the box has an influence.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * random.uniform(scale[0], scale[1])
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(0, width - w + 1), random.integers(0, height - h + 1)
            break
    else:
        w = min(width, max(1, round(height * ratio[1])))
        h = min(height, max(1, round(width / ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
    return geometry.resize(image[top : top + h, left : left + w], *size)
