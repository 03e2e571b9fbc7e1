"""`cnnbench bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from cnnbench.cli.options import FilePath, access_to, answer, as_json, data_dir, overrides
from cnnbench.recipe.shipped import find_recipe


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=FilePath())
@click.option(
    "--mode",
    type=click.Choice(("train", "infer", "data")),
    default="train",
    show_default=True,
    help="Measure training, inference or the data pipeline.",
)
@overrides
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Number of times to repeat each measurement.",
)
@click.option("--compare-stock", is_flag=True, help="Also measure Keras's fit on the same network.")
@click.option("--no-tune", is_flag=True, help="Do not search for the fastest settings first.")
@click.option(
    "--profile",
    type=FilePath(),
    metavar="FOLDER",
    help="Profile a few training steps instead, and write the trace to FOLDER.",
)
@data_dir
@as_json
def bench(
    recipes: Sequence[Path],
    mode: Literal["train", "infer", "data"],
    overrides: Sequence[str],
    rounds: int,
    compare_stock: bool,
    no_tune: bool,
    profile: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure the speed of training, inference or data loading of RECIPES."""
    from cnnbench.bench import benchmark
    from cnnbench.bench import profile as profile_module
    from cnnbench.recipe.load import load_recipe
    from cnnbench.report import tables

    if compare_stock and mode != "train":
        raise click.UsageError("--compare-stock requires --mode train.")
    checked = [load_recipe(find_recipe(recipe), tuple(overrides)) for recipe in recipes]
    if profile is not None:
        if len(checked) > 1 or mode != "train":
            raise click.UsageError("--profile requires --mode train and a single recipe.")
        result = profile_module.profile(checked[0], profile, access_to(data_dir))
        answer(result, as_json, tables.profile)
        return
    result = benchmark.bench(
        checked,
        mode,
        rounds=rounds,
        tune=not no_tune,
        compare_stock=compare_stock,
        access=access_to(data_dir),
    )
    answer(result, as_json, tables.benchmark)
