"""The preprocessing of published weights, which a recipe takes unless it sets another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cnnbench.models.pretrained.preprocessing import Preprocessing
from cnnbench.models.pretrained.sources import Origin, origin_of
from cnnbench.recipe.recipe import Recipe


def with_preprocessing(recipe: Recipe) -> Recipe:
    """Returns a recipe with the preprocessing of its weights where it sets none.

    Raises:
        RecipeError: it is not known of which network the weights are, or it is another.
    """
    with recipe.located():
        origin = origin_of(recipe.model)
    if origin is None or origin.preprocessing is None:
        return recipe
    wanted = _wanted(recipe, origin.preprocessing)
    update = {key: value for key, value in wanted.items() if getattr(recipe.data, key) is None}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def notes(recipe: Recipe) -> list[str]:
    """Returns what to tell about the weights: of which network they are, and what differs.

    Args:
        recipe: a recipe from `with_preprocessing`.
    """
    origin = origin_of(recipe.model)
    if origin is None:
        return []
    if origin.source is None or origin.preprocessing is None:
        return ["weights: of no published network, so their preprocessing is not known"]
    prepared = origin.preprocessing
    usual = "; the file does not say so: usual for this network" if origin.is_usual else ""
    first = (
        f"weights: {origin.source.name}, by {origin.evidence}; for {prepared.color}, "
        f"mean {_rounded(prepared.mean)}, std {_rounded(prepared.std)}{usual}"
    )
    return [first, *_differences(recipe, origin)]


def _differences(recipe: Recipe, origin: Origin) -> Iterator[str]:
    prepared = origin.preprocessing
    assert prepared is not None
    wanted = {"color": prepared.color, "mean": list(prepared.mean), "std": list(prepared.std)}
    for key, value in (wanted | _wanted(recipe, prepared)).items():
        found = getattr(recipe.data, key)
        if not _equal(found, value):
            where = recipe.where(f"data.{key}")
            yield f"{where}: data.{key} is {found}, but the weights were trained with {value}"
    if prepared.crop_mode != "center":
        yield (
            f"the weights were evaluated with crop_mode {prepared.crop_mode}; "
            "images are cropped in the center here"
        )


def _wanted(recipe: Recipe, prepared: Preprocessing) -> dict[str, Any]:
    """Returns the options of `data` that prepare images as for the weights, as far as published."""
    data = recipe.data
    wanted: dict[str, Any] = {"color": prepared.color}
    if data.color in (None, prepared.color):
        wanted |= {"mean": list(prepared.mean), "std": list(prepared.std)}
    if data.image_size and prepared.crop:
        wanted["resize_short"] = math.floor(data.image_size / prepared.crop)  # as timm rounds
    if prepared.interpolation:
        wanted["interpolation"] = prepared.interpolation
    return wanted


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        close = isinstance(found, list) and len(found) == len(wanted)
        return close and all(abs(a - b) < 1e-6 for a, b in zip(found, wanted, strict=True))
    return bool(found == wanted)
