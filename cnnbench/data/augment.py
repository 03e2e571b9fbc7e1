"""Augmentations: pure functions of images and a seed.

Most work on a batch, (batch, height, width, channels) uint8, in TensorFlow; every image of it draws
for itself. Those registered with `per_image=True` bring one image of any size to the network's
size, in NumPy. Either way the draws depend on nothing but the seed, which the pipeline derives from
the recipe's seed and the position in training.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from cnnbench.data import images as geometry
from cnnbench.lazy import tf
from cnnbench.parts import AUGMENTATIONS


def _ordered(limits: list[float]) -> list[float]:
    if limits[0] > limits[1]:
        raise ValueError("the first is the lower limit, the second the upper one")
    return limits


_two = (Field(min_length=2, max_length=2), AfterValidator(_ordered))
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], *_two]
Ratios = Annotated[list[Annotated[float, Field(gt=0)]], *_two]


@AUGMENTATIONS.register("random_crop")
def random_crop(images: Any, seed: Any, *, padding: Annotated[int, Field(ge=1, le=256)] = 4) -> Any:
    """Pads with zeros and crops back at a random place (He et al. 2015, section 4.2)."""
    batch, height, width, _ = tf.unstack(tf.shape(images))
    padded = tf.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = tf.random.stateless_uniform((2, batch), seed, 0, 2 * padding + 1, tf.int32)
    rows = offsets[0][:, None] + tf.range(height)
    columns = offsets[1][:, None] + tf.range(width)
    cropped = tf.gather(padded, rows, batch_dims=1)
    cropped = tf.gather(cropped, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


@AUGMENTATIONS.register("random_flip")
def random_flip(
    images: Any, seed: Any, *, probability: Annotated[float, Field(ge=0, le=1)] = 0.5
) -> Any:
    """Mirrors left and right."""
    flip = tf.random.stateless_uniform((tf.shape(images)[0],), seed) < probability
    return tf.where(flip[:, None, None, None], tf.reverse(images, (2,)), images)


@AUGMENTATIONS.register("random_rotation")
def random_rotation(
    images: Any, seed: Any, *, degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
) -> Any:
    """Rotates about the centre by an angle uniform in [-degrees, degrees]; zeros come in."""
    batch, height, width, _ = tf.unstack(tf.shape(images))
    limit = math.radians(degrees)
    angles = tf.random.stateless_uniform((batch,), seed, -limit, limit)
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


@AUGMENTATIONS.register("cutout")
def cutout(images: Any, seed: Any, *, size: Annotated[int, Field(ge=1, le=1024)] = 16) -> Any:
    """Blanks a square of `size` pixels whose centre may be any pixel (DeVries & Taylor 2017)."""
    batch, height, width, _ = tf.unstack(tf.shape(images))
    centre = tf.random.stateless_uniform((2, batch), seed)
    top, left = (
        tf.cast(centre[axis] * tf.cast(side, tf.float32), tf.int32)[:, None] - size // 2
        for axis, side in enumerate((height, width))
    )
    in_rows = (tf.range(height) >= top) & (tf.range(height) < top + size)
    in_columns = (tf.range(width) >= left) & (tf.range(width) < left + size)
    inside = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return tf.where(inside, tf.zeros_like(images), images)


@AUGMENTATIONS.register("random_resized_crop", per_image=True)
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
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
    return geometry.resize(image, *size, box=(left, top, left + w, top + h))
