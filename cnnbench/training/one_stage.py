"""Training: our own loop, which can stop and go on at any step.

Several steps run in one call into TensorFlow. What a step does depends on the state and on the
step's number alone, and the state, arrays and plain values, is what a checkpoint holds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cnnbench.backend import session
from cnnbench.backend import settings as runtime
from cnnbench.backend.settings import Choice, Settings
from cnnbench.data.open import Access
from cnnbench.errors import RunError
from cnnbench.optim.schedules import LearningRate
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs import checkpoint
from cnnbench.runs.create import begin, new_run
from cnnbench.runs.run import Run
from cnnbench.system import files, signals
from cnnbench.training import start as beginning
from cnnbench.training import writer as writer_module
from cnnbench.training.callbacks import Callbacks
from cnnbench.training.learner import Learner
from cnnbench.training.loop import Loop, Progress, _restored


@session.isolated()
def train(
    recipe: Recipe,
    *,
    access: Access | None = None,
    run_dir: Path | None = None,
    callbacks: Callbacks | None = None,
    choice: Choice | None = None,
    start: Run | None = None,
) -> Run:
    """Trains a network as the last stage of a recipe says, in a new run directory.

    Args:
        recipe: what to train.
        access: where data sets lie.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.
        callbacks: what training reports to; None: nothing.
        choice: how TensorFlow runs; None: as the recipe says, without a measurement.
        start: the run of the stage before; None: as the recipe says.

    Returns:
        The finished run.

    Raises:
        DataError: the data set is not there or an image is bad.
        UsageError: the recipe does not fit the data.
        DivergedError: the loss became NaN or infinite.
        InterruptedRun: a signal came; the run can be resumed.
        RunError: the run directory cannot be written.
    """
    recipe = recipe.absolute()
    choice = choice or Choice(Settings.of(recipe.train.runtime), "not tuned")
    runtime.apply(choice.settings)
    others = beginning.runs(recipe, start)
    with new_run(run_dir, recipe) as run:
        learner = Learner(recipe, access or Access(), choice.settings, others)
        learner.initialize()
        begin(
            run,
            learner.about_data(),
            choice.about() | {"replicas": learner.replicas},
            architecture=learner.architecture,
            others=others,
        )
        return fit(learner, run, callbacks or Callbacks())


@session.isolated()
def resume(
    run: Run,
    *,
    access: Access | None = None,
    callbacks: Callbacks | None = None,
    force: bool = False,
) -> Run:
    """Continues an interrupted run at the very next step.

    Args:
        run: what to continue.
        access: where data sets lie; None: where they lay.
        callbacks: what training reports to; None: nothing.
        force: whether to go on with other versions of the code than the run began with.

    Raises:
        RunError: the run is finished or locked, or no checkpoint of it is whole, or the data, the
            code or the number of replicas is not what it was.
        InterruptedRun, DivergedError, DataError: as for `train`.
    """
    if run.finished:
        raise RunError("the run is finished: there is nothing to resume", where=str(run.path))
    settings = run.settings()
    runtime.apply(settings)
    with run.locked():
        files.recover(run.best)
        if access is None or access.data_dir is None:
            data_dir = run.data().data_dir
            access = Access(Path(data_dir) if data_dir else None)
        # Without a checkpoint, training begins anew.
        architecture = run.architecture() if checkpoint.exists(run.checkpoints) else None
        learner = Learner(run.recipe, access, settings, run.others(), architecture)
        run.must_match_data(learner.about_data())
        notes = run.must_match_code(replicas=learner.replicas, force=force)
        return fit(learner, run, callbacks or Callbacks(), resume=True, notes=notes)


def fit(
    learner: Learner,
    run: Run,
    callbacks: Callbacks,
    *,
    resume: bool = False,
    notes: Sequence[str] = (),
) -> Run:
    """Trains to the end, from the newest checkpoint if there is one to resume.

    Args:
        learner: what trains; where there is nothing to resume, with the weights to begin with.
        run: that has begun, and is locked.
        callbacks: what training reports to; None: nothing.
        resume: whether to look for a checkpoint.
        notes: lines for people, reported first.

    Returns:
        The finished run.
    """
    recipe, start = learner.recipe, time.perf_counter()
    rate = LearningRate(
        recipe.schedule,
        recipe.optimizer.options()["lr"],
        learner.total_steps,
        learner.stream.steps_per_epoch,
    )
    progress = Progress()
    notes = [*notes, *(f"skipped {name}: not an image" for name in learner.skipped)]
    if resume:
        saved, damaged = checkpoint.newest(run.checkpoints)
        notes += [f"damaged and set aside: {error}" for error in damaged]
        if saved is not None:
            progress = _restored(learner, rate, saved, run)
        elif (epochs := len(run.metrics())) > 1:  # the first epoch's checkpoint was written
            raise RunError(f"no checkpoint is left of {epochs} epochs", where=str(run.checkpoints))
        else:
            learner.initialize()
    run.write_metrics(progress.rows)
    callbacks.started(run, learner.total_steps, progress.step, notes)
    with signals.caught() as interrupted, writer_module.Writer() as writer:
        loop = Loop(learner, run, rate, callbacks, writer, interrupted, progress)
        loop.train()
        writer.wait()
        share = writer.seconds / (time.perf_counter() - start)
        callbacks.noted(f"saving took {writer.seconds:.1f} s of training, {share:.1%} of it")
    progress = loop.progress
    facts = {"step": progress.step, "epochs": len(progress.rows)}
    files.write_json(run.path / "finished.json", facts | {"rollbacks": progress.rollbacks})
    return run
