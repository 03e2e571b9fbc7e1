"""Augmentations: pure functions of images and of where in training they are.

A function is of one of four kinds. "crop" brings one image of any size to the network's size, in
NumPy; it comes first in a recipe. "image" changes one image, in NumPy. "batch" changes a batch,
(batch, height, width, channels) uint8, in TensorFlow; every image of it draws for itself. "mix"
makes new images and soft labels of a batch. Whatever the kind, the draws depend on nothing but the
recipe's seed, the augmentation's place in the recipe, and the epoch and position in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cnnbench.backend.lazy import tf
from cnnbench.data import images as geometry
from cnnbench.data.augment import policies  # noqa: F401 - registers those of one image
from cnnbench.registry.kinds import AUGMENTATIONS
from cnnbench.registry.limits import Alpha, Fraction, Ratios, Shares


@dataclass(frozen=True)
class Draw:
    """Where the random numbers of a batch come from.

    seed: (2,) int64, of the augmentation and the training step.
    key: of the augmentation alone.
    examples: (batch,) int64, the place of each image among the training examples.
    epoch: () int64, from 0.
    """

    seed: Any
    key: int
    examples: Any
    epoch: Any

    def uniform(self, shape: Any, *limits: Any, stream: int = 0, dtype: Any = None) -> Any:
        """Returns uniform numbers, float32 in 0-1 or as the limits say, of a stream by itself."""
        seed = self.seed + tf.constant([0, stream << 48], tf.int64)
        return tf.random.stateless_uniform(shape, seed, *limits, dtype=dtype or tf.float32)

    def coin_of_example(self) -> Any:
        """Returns (batch,) bool, a fair coin for each example, the same in every epoch."""
        # The finalizer of SplitMix64 (Steele et al. 2014), a hash with well mixed bits.
        x = tf.cast(self.examples, tf.uint64) + tf.constant(self.key, tf.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64)))
            x *= tf.constant(factor, tf.uint64)
        return tf.cast(tf.bitwise.right_shift(x, tf.constant(63, tf.uint64)), tf.bool)


@AUGMENTATIONS.register(
    "random_crop",  # a mirror has no more than the image, without its edge
    most=lambda options, side: ("padding", side - (options["mode"] == "reflect")),
)
def random_crop(
    images: Any,
    draw: Draw,
    *,
    padding: Annotated[int, Field(ge=1, le=256)] = 4,
    mode: Literal["constant", "reflect"] = "constant",
) -> Any:
    """Pads, with zeros or a mirror image, and crops back at a random place.

    He et al. 2015, section 4.2, with zeros; Jordan 2024, section 3.1, with two mirrored pixels.
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
    """Mirrors left and right."""
    flip = draw.uniform((tf.shape(images)[0],)) < probability
    return tf.where(flip[:, None, None, None], tf.reverse(images, (2,)), images)


@AUGMENTATIONS.register("alternating_flip")
def alternating_flip(images: Any, draw: Draw) -> Any:
    """Mirrors left and right in every second epoch, of which a coin decides once an image.

    Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6: any two epochs in
    a row show both sides of each image.
    """
    flip = tf.math.logical_xor(draw.coin_of_example(), tf.equal(draw.epoch % 2, 1))
    return tf.where(flip[:, None, None, None], tf.reverse(images, (2,)), images)


@AUGMENTATIONS.register("random_rotation")
def random_rotation(
    images: Any, draw: Draw, *, degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
) -> Any:
    """Rotates about the centre by an angle uniform in [-degrees, degrees]; zeros come in."""
    batch, height, width, _ = tf.unstack(tf.shape(images))
    limit = math.radians(degrees)
    angles = draw.uniform((batch,), -limit, limit)
    cos, sin = tf.cos(angles), tf.sin(angles)
    y, x = (tf.cast(side - 1, tf.float32) / 2 for side in (height, width))
    zero = tf.zeros_like(cos)
    # Row-major coefficients of the map from a pixel of the output to one of the input.
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
    # In uint8 the operation would cut off what is behind the point.
    return tf.ensure_shape(tf.cast(tf.round(rotated), tf.uint8), images.shape)


@AUGMENTATIONS.register(
    "cutout",  # one more, and nothing would be left wherever the centre is
    most=lambda options, side: ("size", 2 * side - 2),
)
def cutout(images: Any, draw: Draw, *, size: Annotated[int, Field(ge=1, le=1024)] = 16) -> Any:
    """Blackens a square of `size` pixels whose centre may be any pixel (DeVries & Taylor 2017).

    Deviation: the authors' code blanks images that are normalised already, to the mean.
    """
    batch, height, width, _ = tf.unstack(tf.shape(images))
    centre = draw.uniform((2, batch))
    top, left = (
        tf.cast(centre[axis] * tf.cast(side, tf.float32), tf.int32) - size // 2
        for axis, side in enumerate((height, width))
    )
    inside = _boxes(images, top, left, top + size, left + size)
    return tf.where(inside, tf.zeros_like(images), images)


def _boxes(images: Any, top: Any, left: Any, bottom: Any, right: Any) -> Any:
    """Returns whether each pixel is in its image's box, (batch, height, width, 1) bool.

    The limits are (batch,) int32; bottom and right are the first pixels outside.
    """
    rows, columns = tf.range(tf.shape(images)[1]), tf.range(tf.shape(images)[2])
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None, None] & in_columns[:, None, :, None]


@AUGMENTATIONS.register("mixup", kind="mix")
def mixup(
    images: Any, labels: Any, draw: Draw, *, alpha: Alpha = 0.2, probability: Fraction = 1.0
) -> tuple[Any, Any]:
    """Adds another image of the batch and its label, by weights of Beta(alpha, alpha).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2; each image draws its
    weight, and its partner by a permutation of the batch. Pixels are rounded.
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
    """Puts a box of another image of the batch in, and weighs the labels by the areas.

    Yun et al. 2019, "CutMix", section 3.1 and its algorithm: the box has a share of the area of
    Beta(alpha, alpha), the image's aspect, and its centre anywhere; what lies outside is cut off.
    """
    batch, height, width, _ = tf.unstack(tf.shape(images))
    share = tf.where(_chosen(images, draw, probability), _beta(images, draw, alpha), 0.0)
    centre = draw.uniform((2, batch), stream=3)
    limits = []
    for axis, side in enumerate((height, width)):
        length = tf.cast(side, tf.float32)
        half = tf.cast(tf.sqrt(share) * length, tf.int32) // 2
        middle = tf.cast(centre[axis] * length, tf.int32)
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
    """Does one of the two to each batch: CutMix with probability `cutmix_share`, else MixUp.

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
    """Returns a draw of Beta(alpha, alpha) for each image, (batch,) float32 in 0-1."""
    shape = (2, tf.shape(images)[0])
    # In float64, for those of a small alpha are often too small for float32.
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
    """Cuts out a share `scale` of the area, of aspect `ratio`, and resizes it to the input.

    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6, in the form of torchvision:
    ten tries, then the largest central box of an allowed aspect.
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
    return geometry.resize(image, *size, box=(left, top, left + w, top + h))
