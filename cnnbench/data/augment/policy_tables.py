"""Tables of the augmentation policies: operations, their strengths and their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from cnnbench.data.augment import operations
from cnnbench.data.augment.operations import Picture

Name = Literal[
    "Identity", "AutoContrast", "Equalize", "Invert", "Rotate", "Solarize", "SolarizeAdd",
    "Posterize", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX",
    "TranslateY",
]  # fmt: skip


class Strength(NamedTuple):
    """An operation and its range of magnitudes.

    Attributes:
        highest: the policy's highest level.
        start: magnitude at level 0.
        end: magnitude at the highest level.
        mirrored: whether the change from `start` is negated with probability 0.5.
    """

    highest: int
    operation: Callable[..., Picture]
    start: float = 0.0
    end: float = 0.0
    mirrored: bool = False

    def magnitude(self, level: float, random: np.random.Generator) -> float:
        """Returns the magnitude at a level, with a random sign if mirrored."""
        change = (self.end - self.start) * level / self.highest
        if self.mirrored and random.random() < 0.5:
            change = -change
        return self.start + change

    def apply(
        self,
        picture: Picture,
        level: float,
        random: np.random.Generator,
        fill: int,
        resample: Image.Resampling = Image.Resampling.NEAREST,
    ) -> Picture:
        """Applies the operation at a level."""
        return self.operation(picture, self.magnitude(level, random), fill, resample)


def _strengths(
    highest: int,
    *,
    shear: float,
    rotate: float,
    bits: tuple[float, float],
    blend: tuple[float, float],
    mirrored: bool = False,
    shift: float = 0.0,
    pixels: float = 0.0,
) -> Mapping[str, Strength]:
    """Returns a paper's table of operations.

    Args:
        highest: highest level.
        shear: largest shear, in pixels per row or column.
        rotate: largest rotation, in degrees.
        bits: bits that posterize keeps at the lowest and at the highest level.
        blend: factors of color, contrast, brightness and sharpness, likewise.
        mirrored: whether the change of these factors is negated with probability 0.5.
        shift: largest translation, as a fraction of the side.
        pixels: largest translation in pixels; replaces `shift`.
    """
    strength = partial(Strength, highest)
    translate_x: Callable[..., Picture] = operations.translate_x if pixels else operations.shift_x
    translate_y: Callable[..., Picture] = operations.translate_y if pixels else operations.shift_y
    farthest = pixels or shift
    return {
        "Identity": strength(operations.identity),
        "AutoContrast": strength(operations.autocontrast),
        "Equalize": strength(operations.equalize),
        "Invert": strength(operations.invert),
        "Rotate": strength(operations.rotate, 0, rotate, mirrored=True),
        "Solarize": strength(operations.solarize, 256, 0),
        "SolarizeAdd": strength(operations.solarize_add, 0, 110),  # only in the TPU code
        "Posterize": strength(operations.posterize, *bits),
        "Color": strength(operations.color, *blend, mirrored),
        "Contrast": strength(operations.contrast, *blend, mirrored),
        "Brightness": strength(operations.brightness, *blend, mirrored),
        "Sharpness": strength(operations.sharpness, *blend, mirrored),
        "ShearX": strength(operations.shear_x, 0, shear, mirrored=True),
        "ShearY": strength(operations.shear_y, 0, shear, mirrored=True),
        "TranslateX": strength(translate_x, 0, farthest, mirrored=True),
        "TranslateY": strength(translate_y, 0, farthest, mirrored=True),
    }


AUTO_AUGMENT = _strengths(9, shear=0.3, rotate=30, bits=(8, 4), blend=(0.1, 1.9), shift=150 / 331)

# Two operations, each with its probability and its level, 0-9.
SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]
AUTO_AUGMENT_POLICIES: Mapping[str, tuple[SubPolicy, ...]] = {
    "cifar10": (
        (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
        (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
        (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
        (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
    ),
    "svhn": (
        (("ShearX", 0.9, 4), ("Invert", 0.2, 3)),
        (("ShearY", 0.9, 8), ("Invert", 0.7, 5)),
        (("Equalize", 0.6, 5), ("Solarize", 0.6, 6)),
        (("Invert", 0.9, 3), ("Equalize", 0.6, 3)),
        (("Equalize", 0.6, 1), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("AutoContrast", 0.8, 3)),
        (("ShearY", 0.9, 8), ("Invert", 0.4, 5)),
        (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
        (("Invert", 0.9, 6), ("AutoContrast", 0.8, 1)),
        (("Equalize", 0.6, 3), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
        (("ShearY", 0.8, 8), ("Invert", 0.7, 4)),
        (("Equalize", 0.9, 5), ("TranslateY", 0.6, 6)),
        (("Invert", 0.9, 4), ("Equalize", 0.6, 7)),
        (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
        (("Invert", 0.8, 5), ("TranslateY", 0.0, 2)),
        (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
        (("Invert", 0.6, 4), ("Rotate", 0.8, 4)),
        (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
        (("ShearX", 0.1, 6), ("Invert", 0.6, 5)),
        (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
        (("ShearY", 0.8, 4), ("Invert", 0.8, 8)),
        (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
        (("ShearY", 0.8, 5), ("AutoContrast", 0.7, 3)),
        (("ShearX", 0.7, 2), ("Invert", 0.1, 5)),
    ),
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
        (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    ),
}

RAND_AUGMENT = _strengths(
    30, shear=0.3, rotate=30, bits=(8, 4), blend=(1.0, 1.9), mirrored=True, shift=150 / 331
)
FOURTEEN: list[Name] = [
    "Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color", "Posterize", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
]  # fmt: skip

TRIVIAL_AUGMENT = _strengths(30, shear=0.99, rotate=135, bits=(8, 2), blend=(0.01, 2.0), pixels=32)

AUG_MIX = _strengths(10, shear=0.3, rotate=30, bits=(4, 0), blend=(0.1, 1.9), shift=1 / 3)
NINE: list[Name] = [
    "AutoContrast", "Equalize", "Posterize", "Rotate", "Solarize", "ShearX", "ShearY", "TranslateX",
    "TranslateY",
]  # fmt: skip
