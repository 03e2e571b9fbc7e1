"""Training in stages: each is a run of its own, and begins with the weights of the one before."""

from __future__ import annotations

import shutil
from pathlib import Path

from cnnbench.backend import session
from cnnbench.backend import settings as settings_module
from cnnbench.backend.settings import Choice, Settings
from cnnbench.data.open import Access
from cnnbench.errors import InterruptedRun, RunError
from cnnbench.recipe.load import read_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs.create import must_be_free, new_folder
from cnnbench.runs.find import is_finished, kept_stage_recipes, stage_recipes
from cnnbench.runs.run import RUNS, STAGES, Run, open_run
from cnnbench.system import files, signals
from cnnbench.training import compression, one_stage, start
from cnnbench.training.callbacks import Callbacks
from cnnbench.training.learner import Learner


@session.isolated()
def train(
    recipe: Recipe,
    *,
    access: Access | None = None,
    run_dir: Path | None = None,
    callbacks: Callbacks | None = None,
    choice: Choice | None = None,
) -> Run:
    """Trains a network as a recipe says.

    Where `compress` has several stages, the run directory holds a run for each, such as 1-distill
    and 2-qat.

    Args:
        recipe: what to train.
        access: where data sets lie.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.
        callbacks: what training reports to; None: nothing.
        choice: how TensorFlow runs; None: as the recipe says, without a measurement.

    Returns:
        The finished run, that of the last stage.

    Raises:
        DataError, UsageError, DivergedError, InterruptedRun, RunError: as `training.train` does.
    """
    if len(recipe.compress) < 2:
        return one_stage.train(
            recipe, access=access, run_dir=run_dir, callbacks=callbacks, choice=choice
        )
    recipe = recipe.absolute()
    choice = choice or Choice(Settings.of(recipe.train.runtime), "not tuned")
    if run_dir is not None:
        must_be_free(run_dir)
    _dry_run(recipe, access or Access(), choice.settings)
    with files.storage_errors(run_dir or RUNS):
        made = run_dir is None or not run_dir.exists()
        folder = new_folder(recipe.name) if run_dir is None else run_dir
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):  # another may have begun there meanwhile, which has a lock there
            raise RunError("the run directory is not empty", where=str(folder))
    files.write_bytes(folder / STAGES, recipe.dump().encode())
    try:
        return _go_on(folder, access=access, callbacks=callbacks, choice=choice)
    finally:
        began = (path / "recipe.yaml" for path, _ in stage_recipes(folder, recipe))
        if not any(file.is_file() for file in began):
            (folder / STAGES).unlink(missing_ok=True)
            if made:
                shutil.rmtree(folder, ignore_errors=True)


@session.isolated()
def resume(
    run: Run | Path,
    *,
    access: Access | None = None,
    callbacks: Callbacks | None = None,
    force: bool = False,
) -> Run:
    """Continues an interrupted training at the very next step.

    Args:
        run: what to continue: a run, a run directory, or the folder of a recipe of several stages,
            for which a run of one of them stands too.
        access: where data sets lie; None: where they lay.
        callbacks: what training reports to; None: nothing.
        force: as for `training.resume`.

    Raises:
        RunError: all is finished, or as for `training.resume`.
        InterruptedRun, DivergedError, DataError: as for `train`.
    """
    path = run.path if isinstance(run, Run) else run
    if (path.absolute().parent / STAGES).is_file():
        path = path.absolute().parent
    if not (path / STAGES).is_file():
        return one_stage.resume(open_run(path), access=access, callbacks=callbacks, force=force)
    if is_finished(path):
        raise RunError("the run is finished: there is nothing to resume", where=str(path))
    return _go_on(path, access=access, callbacks=callbacks, force=force)


def must_match(path: Path, recipe: Recipe) -> None:
    """Refuses to go on with a recipe that is not the one which a run began with.

    Raises:
        RunError: it differs; the message has the lines that do.
    """
    several = (path / STAGES).is_file()
    run = Run(path, read_recipe(path / STAGES)) if several else open_run(path)
    run.must_match(recipe.absolute())


def _dry_run(recipe: Recipe, access: Access, settings: Settings) -> None:
    """Refuses what a stage cannot do now, and not when those before it are trained.

    Each is made ready as for its training, of a network that has learned nothing.
    """
    settings_module.apply(settings)
    learner: Learner | None = None
    for _, stage in stage_recipes(Path(), recipe):
        records = None
        if learner is not None:
            with session.precision(recipe.train.precision), learner.strategy.scope():
                _, records = compression.apply_last_stage(
                    stage, learner.state.network, learner.architecture
                )
        learner = Learner(stage, access, settings, start.referenced_runs(stage), records)


def _go_on(
    folder: Path,
    *,
    access: Access | None,
    callbacks: Callbacks | None,
    choice: Choice | None = None,
    force: bool = False,
) -> Run:
    before: Run | None = None
    with signals.caught() as interrupted:
        for path, stage in kept_stage_recipes(folder):
            if interrupted():  # while the stage before came to its end
                raise _interrupted(folder, "interrupted between stages")
            begun = open_run(path) if (path / "recipe.yaml").is_file() else None
            if begun is not None:
                begun.must_match(stage)
                if begun.finished:
                    before = begun
                    continue
            if before is not None:  # TensorFlow runs in one way in a process, and so on resume
                choice = Choice(before.settings(), "that of the stage before")
            try:
                if begun is not None:
                    before = one_stage.resume(
                        begun, access=access, callbacks=callbacks, force=force
                    )
                else:
                    before = one_stage.train(
                        stage,
                        access=access,
                        run_dir=path,
                        callbacks=callbacks,
                        choice=choice,
                        start=before,
                    )
            except InterruptedRun as error:
                raise _interrupted(folder, f"{path.name}: {error.what}") from None
    assert before is not None  # there are several stages
    return before


def _interrupted(folder: Path, what: str) -> InterruptedRun:
    """Returns the error that says how to go on with all stages."""
    way = f"continue with --resume --run-dir {folder}"
    return InterruptedRun(what, where=str(folder), allowed=way)
