"""The preprocessing of published weights, which a recipe takes unless it sets another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cnnbench.errors import UsageError
from cnnbench.models.pretrained.preprocessing import Preprocessing
from cnnbench.models.pretrained.sources import Identification, identification_of
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import DataSpec


def with_preprocessing(recipe: Recipe) -> Recipe:
    """Returns a recipe with the preprocessing of its weights where it sets none.

    Raises:
        RecipeError: it is not known of which network the weights are, or it is another; or the
            recipe sets `mean` or `std` without `color`, and the weights want another color than
            that of the stored images.
    """
    with recipe.located():
        found = identification_of(recipe.model)
        if found is None or found.preprocessing is None:
            return recipe
        _must_name_color(recipe.data, found.preprocessing)
    wanted = _wanted(recipe, found.preprocessing)
    update = {key: value for key, value in wanted.items() if getattr(recipe.data, key) is None}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def _must_name_color(data: DataSpec, prepared: Preprocessing) -> None:
    """Raises UsageError if a recipe's mean or std would be applied in another color than its own.

    Without `data.color`, they are of the stored channels: one is grey, three are red, green and
    blue.
    """
    for key in ("mean", "std"):
        if data.color is None and (values := getattr(data, key)) is not None:
            stored = "grey" if len(values) == 1 else "rgb"
            if stored != prepared.color:
                raise UsageError(
                    f"{values} is for {stored}, but the weights want {prepared.color}, and "
                    "data.color is not set",
                    allowed=f"set data.color to {stored} to keep data.{key}, or remove data.mean "
                    "and data.std to take those of the weights",
                    key=f"data.{key}",
                )


def prepared_as(recipe: Recipe, other: Recipe) -> Recipe:
    """Returns a recipe with another's preprocessing where it sets none.

    Of the same recipe, the other was read when the weights were there, whose preprocessing
    `with_preprocessing` took.
    """
    update = {
        key: getattr(other.data, key)
        for key in ("color", "mean", "std", "resize_short", "interpolation")
        if getattr(recipe.data, key) is None
    }
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def notes(recipe: Recipe) -> list[str]:
    """Returns what to tell about the weights: of which network they are, and what differs.

    Args:
        recipe: a recipe from `with_preprocessing`.
    """
    found = identification_of(recipe.model)
    if found is None:
        return []
    if found.network is None or found.preprocessing is None:
        return ["weights: of no published network, so their preprocessing is not known"]
    prepared = found.preprocessing
    usual = "; the file does not say so: usual for this network" if found.is_usual else ""
    first = (
        f"weights: {found.network.name}, by {found.evidence}; for {prepared.color}, "
        f"mean {_rounded(prepared.mean)}, std {_rounded(prepared.std)}{usual}"
    )
    return [first, *_differences(recipe, found)]


def _differences(recipe: Recipe, found: Identification) -> Iterator[str]:
    prepared = found.preprocessing
    assert prepared is not None and found.network is not None
    of_them = f"usual for {found.network.name} is" if found.is_usual else "the weights want"
    wanted = {"color": prepared.color, "mean": list(prepared.mean), "std": list(prepared.std)}
    for key, value in (wanted | _wanted(recipe, prepared)).items():
        set_to = getattr(recipe.data, key)
        if not _equal(set_to, value):
            where = recipe.where(f"data.{key}")
            yield f"{where}: data.{key} is {set_to}, but {of_them} {value}"
    if prepared.crop_mode != "center":
        yield (
            f"the publisher evaluates the weights with crop_mode {prepared.crop_mode}; "
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
