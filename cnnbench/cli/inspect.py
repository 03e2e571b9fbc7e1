"""`cnnbench show`, `list`, `schema` and `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cnnbench.cli.options import FilePath, access_to, answer, as_json, data_dir, overrides, say_json
from cnnbench.errors import UsageError
from cnnbench.recipe.shipped import find_recipe, recipes_folder

LISTS = (
    "models",
    "presets",
    "weights",
    "datasets",
    "augmentations",
    "optimizers",
    "schedules",
    "losses",
    "compressions",
    "recipes",
)


@click.command()
@click.argument("recipe_or_model")
@overrides
@click.option("--plot", type=FilePath(), metavar="FILE.png", help="Draw the network's stages.")
@click.option(
    "--augmented",
    type=FilePath(),
    metavar="FILE.png",
    help="Draw training images of a recipe, original and augmented.",
)
@data_dir
@as_json
def show(
    recipe_or_model: str,
    overrides: Sequence[str],
    plot: Path | None,
    augmented: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show the stages, parameters and MACs of a RECIPE or a MODEL, without training."""
    if augmented is not None:
        from cnnbench.recipe.load import load_recipe
        from cnnbench.report import image_grid, plots

        recipe = load_recipe(find_recipe(Path(recipe_or_model)), tuple(overrides))
        image_grid.augmented(recipe, augmented, access_to(data_dir))
    result = _describe(recipe_or_model, tuple(overrides))
    if plot is not None:
        from cnnbench.report import image_grid, plots

        plots.stages(result, plot)
    from cnnbench.report import tables

    answer(result, as_json, tables.model)


def _describe(recipe_or_model: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    from cnnbench.registry.kinds import MODELS
    from cnnbench.registry.registry import did_you_mean
    from cnnbench.report.describe import show_model, show_recipe

    if recipe_or_model in MODELS.names() and not overrides:
        return show_model(recipe_or_model)
    from cnnbench.recipe.load import load_recipe

    path = find_recipe(Path(recipe_or_model))
    if not path.exists():
        raise UsageError(
            f"{recipe_or_model!r} is neither a recipe nor a model",
            allowed=did_you_mean(recipe_or_model, MODELS.names()),
        )
    return show_recipe(load_recipe(path, overrides))


@click.command(name="list")
@click.argument("what", type=click.Choice(LISTS))
@as_json
def list_parts(what: str, as_json: bool) -> None:
    """List the models, data sets and other parts that a recipe can use."""
    from cnnbench.report import describe, tables

    rows = describe.recipes(recipes_folder()) if what == "recipes" else describe.parts(what)
    answer({what: rows}, as_json, tables.parts)


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from cnnbench.recipe.recipe import Recipe

    say_json(Recipe.model_json_schema())


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Show versions, processor, devices and data sets of this machine."""
    from cnnbench.report import doctor as doctor_module
    from cnnbench.report import tables

    answer(doctor_module.examine(), as_json, tables.facts)
