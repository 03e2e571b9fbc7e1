"""Ranges shared by the options of several components."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _ordered(limits: list[float]) -> list[float]:
    if limits[0] > limits[1]:
        raise ValueError("the first value must not be above the second")
    return limits


def _apart(limits: list[float]) -> list[float]:
    if limits[0] >= limits[1]:
        raise ValueError("the first value must be below the second")
    return limits


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# Fractions of a whole, in [0, 1], (0, 1], [0, 1) and (0, 1).
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, lt=1)]
# A path or a name, of which an empty one would be the current folder.
NonEmpty = Annotated[str, Field(min_length=1)]
# Height or width in pixels.
Side = Annotated[int, Field(ge=1, le=4096)]
# Factor on the filters of every layer (Howard et al. 2017, section 3.3).
WidthMultiplier = Annotated[float, Field(ge=0.1, le=4)]
# Parameter of a beta distribution.
Alpha = Annotated[float, Field(gt=0, le=100)]

_two = (Field(min_length=2, max_length=2), AfterValidator(_ordered))
Shares = Annotated[list[Share], *_two]
Ratios = Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], *_two]
Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_apart)]
