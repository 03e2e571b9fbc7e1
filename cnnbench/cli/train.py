"""`cnnbench train` and `cnnbench import`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cnnbench.recipe.recipe import Recipe
from cnnbench.cli.options import INTERRUPTED, access_to, data_dir, say
from cnnbench.recipe.shipped import find_recipe


@click.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As train.epochs=3.")
@data_dir
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: a new one in runs/.")
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, or the newest.")
@click.option(
    "--force", is_flag=True, help="Resume though the code or versions of packages changed."
)
@click.option("--smoke", is_flag=True, help="The same code, a few steps on a few images.")
@click.option("--no-tune", is_flag=True, help="Do not look for the fastest settings first.")
def train(
    recipe: Path | None,
    overrides: Sequence[str],
    data_dir: Path | None,
    run_dir: Path | None,
    resume: bool,
    force: bool,
    smoke: bool,
    no_tune: bool,
) -> None:
    """Train the network of a RECIPE; print the run directory on the last line of stdout."""
    from cnnbench.recipe.load import load_recipe
    from cnnbench.report import terminal

    if recipe is None and not (resume and run_dir):
        raise click.UsageError("name a RECIPE, or a run to continue with --resume --run-dir.")
    if resume and (overrides or smoke):
        raise click.UsageError("--resume continues a run as it is, without --set or --smoke.")
    if force and not resume:
        raise click.UsageError("--force is for --resume.")
    checked = load_recipe(find_recipe(recipe), tuple(overrides)) if recipe else None
    access = access_to(data_dir)
    if resume:
        from cnnbench.runs import find
        from cnnbench.training import stages

        if checked is None:
            assert run_dir is not None  # refused above
            folder = run_dir
        else:
            folder = run_dir or find.unfinished(checked)
            stages.must_match(folder, checked)
        with terminal.shown() as callbacks:
            run = stages.resume(folder, access=access, callbacks=callbacks, force=force)
    else:
        assert checked is not None
        if run_dir is not None:
            from cnnbench.runs.create import must_be_free

            must_be_free(run_dir)
        if smoke:
            from cnnbench.training.smoke import smoke as cut_down

            checked, note = cut_down(checked, access)
            say(note)
        _download_weights(checked)
        from cnnbench.bench.autotune import choose
        from cnnbench.training.stages import train as train_run

        choice = choose(checked, tune=not no_tune, tell=say)
        for note in choice.notes:
            say(note)
        with terminal.shown() as callbacks:
            run = train_run(
                checked, access=access, run_dir=run_dir, callbacks=callbacks, choice=choice
            )
    from cnnbench.exports.export import export
    from cnnbench.exports.options import ExportOptions

    try:
        export(run, ["saved_model"], options=ExportOptions(verify=False))
    except KeyboardInterrupt:
        say(f"interrupted: {run.path} is trained; cnnbench export --saved-model writes the rest")
        sys.exit(INTERRUPTED)
    click.echo(run.path)


@click.command(name="import")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As model.weights=FILE.")
@data_dir
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: a new one in runs/.")
def import_weights(
    recipe: Path, overrides: Sequence[str], data_dir: Path | None, run_dir: Path | None
) -> None:
    """Make a finished run of the published weights that a RECIPE starts from, without training."""
    from cnnbench.recipe.load import load_recipe

    checked = load_recipe(find_recipe(recipe), tuple(overrides))
    _download_weights(checked)
    from cnnbench.training.import_weights import import_weights as import_run

    click.echo(import_run(checked, access=access_to(data_dir), run_dir=run_dir).path)


def _download_weights(recipe: Recipe) -> None:
    """Fetches the preset that a recipe starts from, if it does and the file is not at hand."""
    from cnnbench.models.pretrained import presets
    from cnnbench.report import terminal

    if (name := recipe.model.weights) in presets.PRESETS:
        with terminal.downloading(f"weights {name}") as report:
            presets.download(name, report)
