"""Limits that options of several augmentations share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _ordered(limits: list[float]) -> list[float]:
    if limits[0] > limits[1]:
        raise ValueError("the first is the lower limit, the second the upper one")
    return limits


_two = (Field(min_length=2, max_length=2), AfterValidator(_ordered))
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], *_two]
Ratios = Annotated[list[Annotated[float, Field(ge=0.01, le=100)]], *_two]
Probability = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(gt=0, le=100)]
