"""Finds the recipes that ship with cnnbench by name."""

from __future__ import annotations

from pathlib import Path


def find_recipe(path: Path) -> Path:
    """Returns the path of a recipe file, or of the shipped recipe with that name."""
    shipped = recipes_folder() / path.name
    if not path.exists() and str(path.parent) in (".", "recipes"):
        for candidate in (shipped, shipped.with_suffix(".yaml")):
            if candidate.is_file():
                return candidate
    return path


def recipes_folder() -> Path:
    """Returns the folder of the shipped recipes: in the package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"
