"""Augmentation policies from the literature: functions of an image and a random generator.

Each takes (height, width, 1 or 3) uint8 and returns the same shape and dtype. All draws come from
the generator, so the result depends only on the image and the generator's state.

A policy selects elementary operations and their strength. The authors' code, torchvision and timm
differ in the strengths; each docstring states which ones are used here. In all policies, the sign
of a shear, translation or rotation is drawn each time, solarize and posterize get stronger with the
level (timm's "increasing" variant), and translations are truncated to whole pixels.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageFilter
from pydantic import Field

from cnnbench.data.augment import operations as elementary
from cnnbench.data.augment import policy_tables as tables
from cnnbench.data.augment.operations import Picture, to_array, to_picture
from cnnbench.registry.kinds import AUGMENTATIONS
from cnnbench.registry.limits import Fraction, Ratios, Shares

Fill = Annotated[int, Field(ge=0, le=255)]
Operations = Annotated[list[tables.Name], Field(min_length=1, max_length=64)]


@AUGMENTATIONS.register("auto_augment", kind="image")
def auto_augment(
    image: np.ndarray,
    random: np.random.Generator,
    *,
    policy: Literal["cifar10", "svhn", "imagenet"] = "cifar10",
    fill: Fill = 128,
) -> np.ndarray:
    """Applies one of 25 learned pairs of operations (Cubuk et al. 2019, tables 6 to 9).

    Levels 0-9 map linearly to the ranges of table 6. The largest translation, 150 of ImageNet's 331
    pixels, becomes 150/331 of the side. As in the authors' code, the level of a blend gives a
    factor in [0.1, 1.9] (torchvision: a distance from 1, of either sign), and solarize and
    posterize get stronger with the level, which the paper does not state. Their CIFAR-10 code
    differs: it divides levels by 10, translates by at most 10 pixels and keeps 4 to 1 bits, where
    the paper has 8 to 4. The policy "v0" in the TPU code and timm is a different one.
    """
    picture = to_picture(image)
    pairs = tables.AUTO_AUGMENT_POLICIES[policy]
    for name, probability, level in pairs[random.integers(len(pairs))]:
        if random.random() < probability:
            picture = tables.AUTO_AUGMENT[name].apply(picture, level, random, fill)
    return to_array(picture)


@AUGMENTATIONS.register("rand_augment", kind="image")
def rand_augment(
    image: np.ndarray,
    random: np.random.Generator,
    *,
    num_ops: Annotated[int, Field(ge=1, le=16)] = 2,
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0,
    magnitude_std: Annotated[float, Field(ge=0, le=30)] = 0.0,
    operations: Operations = tables.FOURTEEN,
    fill: Fill = 128,
) -> np.ndarray:
    """Applies `num_ops` operations, drawn uniformly (Cubuk et al. 2020, section 3).

    Magnitudes 0-30 map linearly to AutoAugment's ranges; for blends they give the distance from 1,
    of either sign, as in torchvision. The authors' TPU code and timm reach the ends of the ranges
    at 10: their 9 is 27 here. With `magnitude_std`, each operation draws its magnitude from a
    normal distribution, clipped to [0, 30] (timm's mstd).
    """
    picture = to_picture(image)
    for index in random.integers(len(operations), size=num_ops):
        level = magnitude
        if magnitude_std:
            level = min(max(random.normal(magnitude, magnitude_std), 0.0), 30.0)
        picture = tables.RAND_AUGMENT[operations[index]].apply(picture, level, random, fill)
    return to_array(picture)


@AUGMENTATIONS.register("trivial_augment", kind="image")
def trivial_augment(
    image: np.ndarray, random: np.random.Generator, *, fill: Fill = 0
) -> np.ndarray:
    """Applies one operation at one strength, both uniform (Müller & Hutter 2021, "wide").

    Strengths are the integers in [0, 30]. As in the authors' code, blend factors are in [0.01, 2]
    (torchvision: [0.01, 1.99]), and translations reach 32 pixels whatever the image size.
    """
    name = tables.FOURTEEN[random.integers(len(tables.FOURTEEN))]
    level = int(random.integers(31))
    return to_array(tables.TRIVIAL_AUGMENT[name].apply(to_picture(image), level, random, fill))


@AUGMENTATIONS.register("aug_mix", kind="image")
def aug_mix(
    image: np.ndarray,
    random: np.random.Generator,
    *,
    width: Annotated[int, Field(ge=1, le=16)] = 3,
    depth: Annotated[int, Field(ge=1, le=16)] | None = None,
    alpha: Annotated[float, Field(ge=0.01, le=100)] = 1.0,
    severity: Annotated[float, Field(ge=0.1, le=10)] = 3.0,
    operations: Operations = tables.NINE,
    fill: Fill = 0,
) -> np.ndarray:
    """Mixes an image with augmented copies of itself (Hendrycks et al. 2020, algorithm 1).

    Each of `width` chains applies `depth` operations (null: 1 to 3) at levels uniform in
    [0.1, `severity`], out of 10. The results of the chains are averaged with weights drawn from
    Dirichlet(alpha), and the average is blended with the image with a weight from
    Beta(alpha, alpha). The paper's consistency loss is not implemented. As in the paper, the
    default operations exclude Color, Contrast, Brightness and Sharpness, which overlap with the
    corruptions of its benchmark.
    """
    original = to_picture(image)
    weights = random.dirichlet([alpha] * width)
    share = random.beta(alpha, alpha)
    mixed = (1 - share) * image
    for weight in weights:
        picture = original
        for index in random.integers(len(operations), size=depth or random.integers(1, 4)):
            strength, level = tables.AUG_MIX[operations[index]], random.uniform(0.1, severity)
            picture = strength.apply(picture, level, random, fill, Image.Resampling.BILINEAR)
        mixed += share * weight * to_array(picture)
    return np.rint(mixed).astype(np.uint8)


@AUGMENTATIONS.register("three_augment", kind="image")
def three_augment(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Applies grayscale, solarize or blur with equal probability (Touvron et al. 2022, section 3).

    The solarize threshold is 128; the blur is Gaussian, with sigma uniform in [0.1, 2] pixels. The
    paper's flip and color jitter of 0.3 are separate augmentations.
    """
    picture = to_picture(image)
    choice = random.integers(3)
    if choice == 0:
        return to_array(elementary.greyscale(picture))
    if choice == 1:
        return to_array(elementary.solarize(picture, 128))
    return to_array(_blurred(picture, random.uniform(0.1, 2.0)))


@AUGMENTATIONS.register("color_jitter", kind="image")
def color_jitter(
    image: np.ndarray,
    random: np.random.Generator,
    *,
    brightness: Fraction = 0.4,
    contrast: Fraction = 0.4,
    saturation: Fraction = 0.4,
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue in random order, as torchvision does.

    Each factor is uniform in [1 - x, 1 + x]; the hue shift is uniform in [-hue, hue], a fraction of
    the circle.
    """
    steps = (
        (elementary.brightness, 1.0, brightness),
        (elementary.contrast, 1.0, contrast),
        (elementary.color, 1.0, saturation),
        (elementary.hue, 0.0, hue),
    )
    picture = to_picture(image)
    for index in random.permutation(len(steps)):
        operation, center, spread = steps[index]
        if spread:
            picture = operation(picture, random.uniform(center - spread, center + spread))
    return to_array(picture)


@AUGMENTATIONS.register("random_grayscale", kind="image")
def random_grayscale(
    image: np.ndarray, random: np.random.Generator, *, probability: Fraction = 0.2
) -> np.ndarray:
    """Converts to grayscale, with the same channels (Chen et al. 2020, "SimCLR", appendix A)."""
    if random.random() >= probability:
        return image
    return to_array(elementary.greyscale(to_picture(image)))


@AUGMENTATIONS.register("gaussian_blur", kind="image")
def gaussian_blur(
    image: np.ndarray,
    random: np.random.Generator,
    *,
    probability: Fraction = 0.5,
    sigma: Ratios = [0.1, 2.0],
) -> np.ndarray:
    """Gaussian blur with uniform `sigma` in pixels (Chen et al. 2020, "SimCLR", appendix A)."""
    if random.random() >= probability:
        return image
    return to_array(_blurred(to_picture(image), random.uniform(sigma[0], sigma[1])))


def _blurred(picture: Picture, sigma: float) -> Picture:
    return picture.filter(ImageFilter.GaussianBlur(sigma))


@AUGMENTATIONS.register("random_erasing", kind="image")
def random_erasing(
    image: np.ndarray,
    random: np.random.Generator,
    *,
    probability: Fraction = 0.5,
    scale: Shares = [0.02, 0.33],
    ratio: Ratios = [0.3, 3.3],
    value: Literal["random", "mean", "zero"] = "random",
) -> np.ndarray:
    """Fills a rectangle with noise, the image's mean or zeros (Zhong et al. 2020, algorithm 1).

    The rectangle's fraction of the area is uniform in `scale` and its height over width in `ratio`.
    It is redrawn until it fits, at most 100 times. Deviation: the paper fills with ImageNet's mean.
    """
    if random.random() >= probability:
        return image
    height, width = image.shape[:2]
    for _ in range(100):
        area = height * width * random.uniform(scale[0], scale[1])
        aspect = random.uniform(ratio[0], ratio[1])
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            erased = image.copy()
            erased[top : top + h, left : left + w] = _fill_values(image, (h, w), value, random)
            return erased
    return image


def _fill_values(
    image: np.ndarray, size: tuple[int, int], value: str, random: np.random.Generator
) -> np.ndarray:
    """Returns the values for a region of `size`, (height, width, channels) or (channels,) uint8."""
    channels = image.shape[-1]
    if value == "random":
        return random.integers(0, 256, (*size, channels), np.uint8)
    if value == "mean":
        return np.rint(image.mean((0, 1))).astype(np.uint8)
    return np.zeros(channels, np.uint8)
