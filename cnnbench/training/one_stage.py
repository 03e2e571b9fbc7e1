"""Training of one run, which can be interrupted and resumed at any step.

One call into TensorFlow runs several steps. A step depends on the state and the step number alone,
and a checkpoint stores that state: arrays and plain values.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cnnbench.backend import session
from cnnbench.backend import settings as runtime
from cnnbench.backend.settings import Choice, Settings
from cnnbench.data.inspection import Inspection
from cnnbench.data.open import Access
from cnnbench.errors import RunError
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs import checkpoint, data_changes, file_lists, network
from cnnbench.runs.create import commit, new_run
from cnnbench.runs.run import Run
from cnnbench.system import files, signals
from cnnbench.training import writer as writer_module
from cnnbench.training.callbacks import Callbacks
from cnnbench.training.learner import Learner
from cnnbench.training.loop import Loop, Training
from cnnbench.training.start import referenced_runs


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
    """Trains the last compression stage of a recipe, or the recipe without one, in a new run.

    Args:
        recipe: the recipe to train.
        access: where data sets are stored.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.
        callbacks: the callbacks that training reports to; None: no callbacks.
        choice: the TensorFlow settings; None: the recipe's, without tuning.
        start: the run of the previous compression stage; None: start as the recipe says.

    Returns:
        The finished run.

    Raises:
        DataError: the data set is missing or an image is damaged.
        UsageError: the recipe does not fit the data.
        DivergedError: the loss or a weight became NaN or infinite.
        InterruptedRun: a signal came; the run can be resumed.
        RunError: the run directory cannot be written.
    """
    recipe = recipe.absolute()
    choice = choice or Choice(Settings.of(recipe.train.runtime), "not tuned")
    runtime.apply(choice.settings)
    others = referenced_runs(recipe, start)
    with new_run(run_dir, recipe) as run:
        learner = Learner(recipe, access or Access(), choice.settings, others)
        if start is None:
            notes = [*learner.notes, *learner.inspect()]
        else:
            _must_match_data(start, learner)
            learner.inspection, notes = Inspection([]), []  # the first stage has begun it
        learner.initialize()
        commit(
            run,
            learner.about_data(),
            choice.about() | {"replicas": learner.replicas},
            architecture=learner.architecture,
            others=others,
            dataset=learner.data,
        )
        return fit(learner, run, callbacks or Callbacks(), notes=notes)


@session.isolated()
def resume(
    run: Run,
    *,
    access: Access | None = None,
    callbacks: Callbacks | None = None,
    force: bool = False,
    accept: Sequence[str] = (),
) -> Run:
    """Resumes an interrupted run from its newest checkpoint.

    Args:
        run: the run to resume.
        access: where data sets are stored; None: as when the run started.
        callbacks: the callbacks that training reports to; None: no callbacks.
        force: whether to continue even if package versions or the code changed.
        accept: files of the data set that may have been removed or replaced; see
            `data_changes.accept`. A finished run is then returned as it is.

    Raises:
        RunError: the run is finished or locked, no checkpoint is intact, or the data, the code or
            the number of replicas changed.
        InterruptedRun, DivergedError, DataError: as in `train`.
    """
    if run.finished and accept:
        with run.locked():
            run, accepted = data_changes.accept(run, access, accept)
        for line in accepted:
            (callbacks or Callbacks()).noted(line)
        return run
    if run.finished:
        raise RunError("the run is finished: there is nothing to resume", where=str(run.path))
    settings = run.settings()
    runtime.apply(settings)
    with run.locked():
        files.recover(run.best)
        run, accepted = data_changes.accept(run, access, accept) if accept else (run, [])
        access = network.access_of(run, access)
        # Without a checkpoint, training starts from the first step.
        architecture = run.architecture() if checkpoint.exists(run.checkpoints) else None
        learner = Learner(run.recipe, access, settings, run.others(), architecture)
        _must_match_data(run, learner)
        notes = accepted + run.must_match_code(replicas=learner.replicas, force=force)
        notes += learner.inspect()
        return fit(learner, run, callbacks or Callbacks(), resume=True, notes=notes)


def _must_match_data(run: Run, learner: Learner) -> None:
    """Raises if the data differs from the data that the run started with.

    Raises:
        RunError: something differs; the message says which files, if it is known.
    """
    file_lists.must_match(run, learner.data)
    run.must_match_data(learner.about_data())


def fit(
    learner: Learner,
    run: Run,
    callbacks: Callbacks,
    *,
    resume: bool = False,
    notes: Sequence[str] = (),
) -> Run:
    """Trains to the end, from the newest checkpoint if resuming.

    Args:
        learner: trains the network; unless resuming, its weights are initialized.
        run: a committed run that this process has locked.
        callbacks: the callbacks that training reports to.
        resume: whether to start from the newest checkpoint, if there is one.
        notes: messages for the user, reported first.

    Returns:
        The finished run.
    """
    start = time.perf_counter()
    training = Training(learner, run)
    notes = [*notes, *(f"skipped {name}: not an image" for name in learner.skipped)]
    if resume:
        saved, damaged = checkpoint.newest(run.checkpoints)
        notes += [f"damaged and set aside: {error}" for error in damaged]
        if saved is not None:
            training.restore(saved)
        elif (epochs := len(run.metrics())) > 1:  # the first epoch's checkpoint was written
            raise RunError(f"no checkpoint is left of {epochs} epochs", where=str(run.checkpoints))
        else:
            learner.initialize()
    run.write_metrics(training.progress.rows)
    callbacks.started(run, learner.total_steps, training.progress.step, notes)
    in_background = learner.inspection.going_on()
    with signals.caught() as interrupted, writer_module.Writer() as writer, in_background:
        Loop(training, callbacks, writer, interrupted).train()
        writer.wait()
        share = writer.seconds / (time.perf_counter() - start)
        callbacks.noted(f"saving took {writer.seconds:.1f} s of training, {share:.1%} of it")
    progress = training.progress
    facts = {"step": progress.step, "epochs": len(progress.rows)}
    files.write_json(run.path / "finished.json", facts | {"rollbacks": progress.rollbacks})
    return run
