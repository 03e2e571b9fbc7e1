"""`cnnbench train` and `cnnbench import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cnnbench.recipe.recipe import Recipe
from cnnbench.cli.options import (
    INTERRUPTED,
    FilePath,
    access_to,
    data_dir,
    data_path,
    overrides,
    say,
    say_path,
)
from cnnbench.recipe.shipped import find_recipe

run_dir = click.option(
    "--run-dir",
    type=FilePath(),
    help="Run directory. [default: a new folder in runs/]",
)


@click.command()
@click.argument("recipe", required=False, type=FilePath())
@overrides
@data_dir
@data_path
@run_dir
@click.option(
    "--resume", is_flag=True, help="Continue the run in --run-dir, or the newest unfinished one."
)
@click.option(
    "--force", is_flag=True, help="Resume even if the code or package versions have changed."
)
@click.option(
    "--accept-data-change",
    "accept",
    multiple=True,
    metavar="FILE",
    help="Resume though this file of the data set was removed or replaced. Can be repeated.",
)
@click.option("--smoke", is_flag=True, help="Train only a few steps on a few images, as a test.")
@click.option("--no-tune", is_flag=True, help="Do not search for the fastest settings first.")
def train(
    recipe: Path | None,
    overrides: Sequence[str],
    data_dir: Path | None,
    data_path: Path | None,
    run_dir: Path | None,
    resume: bool,
    force: bool,
    accept: Sequence[str],
    smoke: bool,
    no_tune: bool,
) -> None:
    """Train the network of a RECIPE; the last line of stdout is the run directory."""
    from cnnbench.recipe.load import load_recipe
    from cnnbench.report import terminal

    if recipe is None and not (resume and run_dir):
        raise click.UsageError("give a RECIPE, or a run to continue with --resume --run-dir.")
    if resume and (overrides or smoke):
        raise click.UsageError("--resume cannot be used with --set or --smoke.")
    if data_path and not resume:
        raise click.UsageError("--data-path requires --resume; --set data.path=… for a new run.")
    if force and not resume:
        raise click.UsageError("--force requires --resume.")
    if accept and not resume:
        raise click.UsageError("--accept-data-change requires --resume.")
    checked = load_recipe(find_recipe(recipe), tuple(overrides)) if recipe else None
    if resume and checked and data_path is None:
        data_path = _images_of(checked)
    access = access_to(data_dir, data_path)
    if resume:
        from cnnbench.runs import find
        from cnnbench.training import stages

        if checked is None:
            assert run_dir is not None  # checked above
            folder = run_dir
        else:
            folder = run_dir or find.unfinished(checked)
            stages.must_match(folder, checked)
        with terminal.shown() as callbacks:
            run = stages.resume(
                folder, access=access, callbacks=callbacks, force=force, accept=accept
            )
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
        _tell_of_weights(checked)
        from cnnbench.bench.autotune import choose
        from cnnbench.system import environment
        from cnnbench.training.stages import train as train_run

        for note in environment.notes():
            say(note)
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
        say(f"interrupted: {run.path} is trained; cnnbench export --saved-model exports it")
        sys.exit(INTERRUPTED)
    say_path(run.path)


@click.command(name="import")
@click.argument("recipe", type=FilePath())
@overrides
@data_dir
@run_dir
@click.option(
    "--check",
    type=FilePath(),
    metavar="FOLDER",
    help="Predict the photographs of a folder, in folders or with names that begin with their "
    "class; exit with 5 if that is no better than guessing.",
)
def import_weights(
    recipe: Path,
    overrides: Sequence[str],
    data_dir: Path | None,
    run_dir: Path | None,
    check: Path | None,
) -> None:
    """Make a finished run from a RECIPE's pretrained weights, without training."""
    from cnnbench.recipe.load import load_recipe

    checked = load_recipe(find_recipe(recipe), tuple(overrides))
    _download_weights(checked)
    _tell_of_weights(checked)
    from cnnbench.training.import_weights import import_weights as import_run

    run = import_run(checked, access=access_to(data_dir), run_dir=run_dir)
    if check is not None:
        from cnnbench.evaluation.photographs import check_photographs

        found = check_photographs(run, check)
        scores = (" ".join(row) for row in run.recipe.task.photograph_rows(found))
        say(
            f"{found['images']} photographs: {', '.join(scores)}"
            + (f"; {found['unlabelled']} have no label" if found["unlabelled"] else "")
            + (f"; {found['unreadable']} cannot be read" if found["unreadable"] else "")
        )
    say_path(run.path)


def _images_of(recipe: Recipe) -> Path | None:
    """Returns where a recipe's images are, which may be elsewhere than when its run started.

    None, if there are none: they may have moved with the run.
    """
    path = getattr(recipe.absolute().data, "path", None)
    return Path(path) if path and os.path.lexists(path) else None


def _tell_of_weights(recipe: Recipe) -> None:
    from cnnbench.recipe.weights import notes

    for note in notes(recipe):
        say(note)


def _download_weights(recipe: Recipe) -> None:
    """Downloads the preset that a recipe starts from, if it has one that is not yet cached."""
    from cnnbench.models.pretrained import presets
    from cnnbench.report import terminal

    name = recipe.model.weights
    if name in presets.PRESETS:
        with terminal.downloading(f"weights {name}") as report:
            presets.download(name, report)
