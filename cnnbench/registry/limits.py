"""Ranges of numbers that options of several parts share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _ordered(limits: list[float]) -> list[float]:
    if limits[0] > limits[1]:
        raise ValueError("the first is the lower limit, the second the upper one")
    return limits


Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# Of something: from none to all of it; not none; not all; neither.
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, lt=1)]
# Height or width in pixels.
Side = Annotated[int, Field(ge=1, le=4096)]
# Of the filters of every layer (Howard et al. 2017, section 3.3).
WidthMultiplier = Annotated[float, Field(ge=0.1, le=4)]
# Of a beta distribution.
Alpha = Annotated[float, Field(gt=0, le=100)]

_two = (Field(min_length=2, max_length=2), AfterValidator(_ordered))
Shares = Annotated[list[Share], *_two]
Ratios = Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], *_two]
