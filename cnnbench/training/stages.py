"""Training of a recipe: one run per compression stage, each starting from the previous one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cnnbench.backend import session
from cnnbench.backend import settings as runtime
from cnnbench.backend.settings import Choice, Settings
from cnnbench.data.open import Access
from cnnbench.errors import InterruptedRun, RunError
from cnnbench.recipe.load import read_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs import network
from cnnbench.runs.create import must_be_free, new_folder
from cnnbench.runs.find import is_finished, kept_stage_recipes, stage_recipes, stage_runs
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
    """Trains a recipe.

    If `compress` has several stages, the run directory contains one run per stage, such as
    1-distill and 2-qat.

    Args:
        recipe: the recipe to train.
        access: where data sets are stored.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.
        callbacks: the callbacks that training reports to; None: no callbacks.
        choice: the TensorFlow settings; None: the recipe's, without tuning.

    Returns:
        The finished run; with several compression stages, the run of the last.

    Raises:
        DataError, UsageError, DivergedError, InterruptedRun, RunError: as in `one_stage.train`.

    Example:
        >>> import cnnbench
        >>> run = cnnbench.train(cnnbench.load_recipe("tiny.yaml"))
        >>> run.finished
        True
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
    with files.storage_errors(run_dir or RUNS, "create the run"):
        made = run_dir is None or not run_dir.exists()
        folder = new_folder(recipe.name) if run_dir is None else run_dir
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):  # such as the lock of a process that started meanwhile
            raise RunError("the run directory is not empty", where=str(folder))
    files.write_bytes(folder / STAGES, recipe.dump().encode())
    try:
        return _train_stages(folder, access=access, callbacks=callbacks, choice=choice)
    finally:
        recipes = (path / "recipe.yaml" for path, _ in stage_recipes(folder, recipe))
        if not any(file.is_file() for file in recipes):
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
    accept: Sequence[str] = (),
) -> Run:
    """Resumes an interrupted training from its newest checkpoint.

    Args:
        run: a run, a run directory, or the folder of a recipe with several compression stages or
            the run of one of them, which resumes all stages.
        access: where data sets are stored; None: as when the run started.
        callbacks: the callbacks that training reports to; None: no callbacks.
        force: as in `one_stage.resume`.
        accept: as in `one_stage.resume`.

    Raises:
        RunError: everything is finished, or as in `one_stage.resume`.
        InterruptedRun, DivergedError, DataError: as in `train`.

    Example:
        >>> import cnnbench
        >>> cnnbench.resume(cnnbench.open_run("runs/digits"))
        Traceback (most recent call last):
        ...
        cnnbench.errors.RunError: runs/digits: ...
    """
    path = run.path if isinstance(run, Run) else run
    if (path.absolute().parent / STAGES).is_file():
        path = path.absolute().parent
    if not (path / STAGES).is_file():
        return one_stage.resume(
            open_run(path), access=access, callbacks=callbacks, force=force, accept=accept
        )
    if is_finished(path) and not accept:
        raise RunError("the run is finished: there is nothing to resume", where=str(path))
    return _train_stages(path, access=access, callbacks=callbacks, force=force, accept=accept)


def must_match(path: Path, recipe: Recipe) -> None:
    """Raises if a recipe differs from the one that a run started with.

    Args:
        path: a run directory, or the folder of a recipe with several compression stages.
        recipe: the recipe to compare.

    Raises:
        RunError: it differs; the message lists the changed lines.
    """
    if (path / STAGES).is_file():
        # The folder has no environment.json; it moved as the runs in it did.
        started = stage_runs(path)
        before = Path(started[0].origin).parent if started else path.absolute()
        run = Run(path, read_recipe(path / STAGES), {"path": str(before)})
    else:
        run = open_run(path)
    run.must_match(recipe.absolute())


def _dry_run(recipe: Recipe, access: Access, settings: Settings) -> None:
    """Prepares every compression stage on an untrained network, so that errors show up at once.

    Otherwise an error in a later stage would show up only after the stages before it are trained.
    """
    runtime.apply(settings)
    learner: Learner | None = None
    for _, stage in stage_recipes(Path(), recipe):
        records = None
        if learner is not None:
            with session.precision(recipe.train.precision), learner.strategy.scope():
                _, records = compression.apply_last_stage(
                    stage, learner.state.network, learner.architecture
                )
        learner = Learner(stage, access, settings, start.referenced_runs(stage), records)


def _train_stages(
    folder: Path,
    *,
    access: Access | None,
    callbacks: Callbacks | None,
    choice: Choice | None = None,
    force: bool = False,
    accept: Sequence[str] = (),
) -> Run:
    """Trains the compression stages in a folder that are not finished yet."""
    before: Run | None = None
    with signals.caught() as interrupted:
        for path, stage in kept_stage_recipes(folder):
            if interrupted():  # during the end of the previous stage
                raise _interrupted(folder, "interrupted between stages")
            if before is not None:
                access = network.access_of(before, access)
                stage = _moved(stage, before, access)
            existing = open_run(path) if (path / "recipe.yaml").is_file() else None
            if existing is not None:
                existing.must_match(stage)
                if existing.finished:
                    before = existing
                    if accept:
                        before = one_stage.resume(
                            existing, access=access, callbacks=callbacks, accept=accept
                        )
                    continue
            if before is not None:  # one process has one setting of TensorFlow, also on resume
                choice = Choice(before.settings(), "that of the stage before")
            try:
                if existing is not None:
                    before = one_stage.resume(
                        existing, access=access, callbacks=callbacks, force=force, accept=accept
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


def _moved(stage: Recipe, before: Run, access: Access) -> Recipe:
    """Returns the recipe of a stage with the paths of today, if things moved since the start."""
    stage = stage.with_paths(lambda path: str(before.now(path)))
    if access.data_path is None:
        return stage
    data = stage.data.model_copy(update={"path": str(access.data_path)})
    return stage.model_copy(update={"data": data})


def _interrupted(folder: Path, what: str) -> InterruptedRun:
    """Returns the error that says how to resume all stages."""
    allowed = f"continue with --resume --run-dir {folder}"
    return InterruptedRun(what, where=str(folder), allowed=allowed)
