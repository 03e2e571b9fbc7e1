"""Augmentation policies of the literature: functions of one image and its random generator.

Each takes (height, width, 1 or 3) uint8 and returns the same shape and type. Every draw comes from
the generator, so an image depends on the generator's state alone.

A policy names elementary operations and says how strong they are. The authors' codes, torchvision
and timm differ in that; a docstring tells what is done here. In all of them, the sign of
a shear, a translation and a rotation is drawn anew, solarize and posterize grow stronger with the
level (timm: the increasing variant), and pixels and bits are cut off to whole ones.
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

    Levels 0-9 are spread evenly over the ranges of table 6. A translation of at most 150 pixels,
    of ImageNet's 331, is one of 150/331 of the side. As in the authors' code, a level of a blend is
    its factor 0.1-1.9 (torchvision: a distance from 1, of either sign), and solarize and posterize
    grow stronger with the level, which the paper's words leave open; its code of CIFAR-10 divides
    levels by 10, moves by at most 10 pixels and keeps 4 to 1 bits, against the paper's 8 to 4.
    The policy named "v0" in the TPU code and timm is another one.
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
    """Applies `num_ops` operations, each drawn uniformly (Cubuk et al. 2020, section 3).

    The magnitude 0-30 is spread evenly over AutoAugment's ranges, and blends go as far from 1 as
    it says, down or up, as in torchvision. The authors' TPU code and timm reach the ends of the
    ranges at 10 already: their 9 is 27 here. With `magnitude_std`, each operation draws its own
    from a normal distribution, cut off at 0 and 30 (timm's mstd).
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
    """Applies one operation at a strength, both uniform (Müller & Hutter 2021, wide).

    The strength is one of 0 to 30. As in the authors' code, blends have the factors 0.01 to 2
    (torchvision: 0.01 to 1.99), and translations are of up to 32 pixels whatever the image.
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
    """Mixes the image with chains of operations on it (Hendrycks et al. 2020, algorithm 1).

    Each of `width` chains applies `depth` operations, or 1 to 3 if it is null, at levels uniform
    between 0.1 and `severity` of 10. The chains are averaged with weights drawn from
    Dirichlet(alpha), and the average with the image by a weight from Beta(alpha, alpha). Only the
    images: the paper's consistency loss between two mixtures is not here. Its operations leave out
    Color, Contrast, Brightness and Sharpness, which are among the corruptions of its test.
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
    """Turns to greyscale, solarizes or blurs, each as often (Touvron et al. 2022, section 3).

    Solarizes from 128 on; blurs by a Gaussian of 0.1 to 2 pixels. The flip and the colour jitter of
    0.3 that go with it in the paper are augmentations of their own.
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
    """Changes brightness, contrast, saturation and hue in a random order, as torchvision does.

    Each factor is uniform in [1 - x, 1 + x], the turn of the hue in [-hue, hue] of the circle.
    """
    steps = (
        (elementary.brightness, 1.0, brightness),
        (elementary.contrast, 1.0, contrast),
        (elementary.color, 1.0, saturation),
        (elementary.hue, 0.0, hue),
    )
    picture = to_picture(image)
    for index in random.permutation(len(steps)):
        operation, centre, spread = steps[index]
        if spread:
            picture = operation(picture, random.uniform(centre - spread, centre + spread))
    return to_array(picture)


@AUGMENTATIONS.register("random_grayscale", kind="image")
def random_grayscale(
    image: np.ndarray, random: np.random.Generator, *, probability: Fraction = 0.2
) -> np.ndarray:
    """Turns to greyscale, in as many channels (Chen et al. 2020, "SimCLR", appendix A)."""
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
    """Blurs by a Gaussian of uniform sigma in pixels (Chen et al. 2020, "SimCLR", appendix A)."""
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

    The rectangle has a share `scale` of the area, and a height of `ratio` times its width, both
    uniform; it is drawn again until it fits, at most 100 times. The paper's mean is ImageNet's.
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
            erased[top : top + h, left : left + w] = _filling(image, (h, w), value, random)
            return erased
    return image


def _filling(
    image: np.ndarray, size: tuple[int, int], value: str, random: np.random.Generator
) -> np.ndarray:
    """Returns what fills (height, width) of an image, or broadcasts to it."""
    channels = image.shape[-1]
    if value == "random":
        return random.integers(0, 256, (*size, channels), np.uint8)
    if value == "mean":
        return np.rint(image.mean((0, 1))).astype(np.uint8)
    return np.zeros(channels, np.uint8)
