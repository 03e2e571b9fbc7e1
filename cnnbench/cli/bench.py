"""`cnnbench bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from cnnbench.cli.options import access_to, answer, as_json, data_dir
from cnnbench.recipe.shipped import find_recipe


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--mode", type=click.Choice(("train", "infer", "data")), default="train")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As data.batch_size=64.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, help="Of each measurement.")
@click.option("--compare-stock", is_flag=True, help="In turn with the same network in Keras's fit.")
@click.option("--no-tune", is_flag=True, help="Do not look for the fastest settings first.")
@click.option("--profile", type=click.Path(path_type=Path), help="Trace a few steps: a folder.")
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
    """Measure how fast RECIPES train, their networks answer, or their images are read."""
    from cnnbench.bench import benchmark
    from cnnbench.bench import profile as profile_module
    from cnnbench.recipe.load import load_recipe
    from cnnbench.report import tables

    if compare_stock and mode != "train":
        raise click.UsageError("--compare-stock is for --mode train.")
    checked = [load_recipe(find_recipe(recipe), tuple(overrides)) for recipe in recipes]
    if profile is not None:
        if len(checked) > 1 or mode != "train":
            raise click.UsageError("--profile is for the training of one recipe.")
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
