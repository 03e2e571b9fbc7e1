"""Training: our own loop, which can stop and go on at any step.

Several steps run in one call into TensorFlow. What a step does depends on the state and on the
step's number alone, and the state, arrays and plain values, is what a checkpoint holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import beginning, checkpoint, files, network, runtime, signals, steps, weights
from cnnbench.checkpoint import Checkpoint
from cnnbench.compress import Record, stage_of
from cnnbench.data.datasets import Access, open_dataset
from cnnbench.data.examples import Dataset
from cnnbench.data.pipeline import (
    TrainingStream,
    evaluation_batches,
    preprocess,
    training_splits,
)
from cnnbench.errors import DivergedError, InterruptedRun, RunError, UsageError
from cnnbench.events import Events
from cnnbench.lazy import tf
from cnnbench.listener import Listener, Silence
from cnnbench.models import without_auxiliary
from cnnbench.optim import build_optimizer
from cnnbench.parts import MODELS, SCHEDULES, input_shape
from cnnbench.recipe import Recipe
from cnnbench.run import DataFacts, Run, begin, new_run
from cnnbench.runtime import Choice, Settings
from cnnbench.schedules import LearningRate, total_steps

KEPT_CHECKPOINTS = 2
# What a network's first weights are computed from, where they come from images.
INITIAL_IMAGES = 5000
# Under `on_nan: rollback`: how often, and what each time multiplies the learning rate.
ROLLBACKS = 3
ROLLBACK_FACTOR = 0.5


@dataclass
class Progress:
    """Where training is: everything of its state that is no array."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch that is under way
    seconds: float = 0.0  # that the epoch under way has taken so far
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    best_score: float | None = None  # of the weights in best/
    reference: float | None = None  # the last score that was better by more than min_delta
    epochs_without: int = 0
    learning_rate: dict[str, Any] = field(default_factory=dict)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Session:
    """What goes along with a training from its start, or resumption, to its end."""

    run: Run
    rate: LearningRate
    events: Events
    listener: Listener
    writer: checkpoint.Writer
    interrupted: Callable[[], bool]


def train(
    recipe: Recipe,
    *,
    access: Access | None = None,
    run_dir: Path | None = None,
    listener: Listener | None = None,
    choice: Choice | None = None,
    start: Run | None = None,
) -> Run:
    """Trains a network as the last stage of a recipe says, in a new run directory.

    Args:
        recipe: what to train.
        access: where data sets lie.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.
        listener: who is told of the progress.
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
        trainer = Trainer(recipe, access or Access(), choice.settings, others)
        trainer.initialize()
        begin(
            run,
            trainer.about_data(),
            choice.about() | {"replicas": trainer.replicas},
            architecture=trainer.architecture,
            others=others,
        )
        return trainer.fit(run, listener or Silence())


def resume(
    run: Run,
    *,
    access: Access | None = None,
    listener: Listener | None = None,
    force: bool = False,
) -> Run:
    """Continues an interrupted run at the very next step.

    Args:
        run: what to continue.
        access: where data sets lie; None: where they lay.
        listener: who is told of the progress.
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
        trainer = Trainer(run.recipe, access, settings, run.others(), architecture)
        run.must_match_data(trainer.about_data())
        notes = run.must_match_code(replicas=trainer.replicas, force=force)
        return trainer.fit(run, listener or Silence(), resume=True, notes=notes)


class Trainer:
    """A recipe made ready to run: data, network, optimizer and the compiled steps.

    Args:
        recipe: of which the last stage is trained.
        access: where data sets lie.
        settings: those that TensorFlow runs under.
        others: the run to start from, as "init", and the teacher's, as "teacher".
        architecture: the records of the stages, where they are known; None: they begin now.
    """

    def __init__(
        self,
        recipe: Recipe,
        access: Access,
        settings: Settings,
        others: Mapping[str, Run] | None = None,
        architecture: Sequence[Record] | None = None,
    ):
        recipe = recipe.of_last_stage()
        self.recipe, self._data_dir, self._others = recipe, access.data_dir, others or {}
        self.data: Dataset = open_dataset(recipe.data, access)
        self.shape: tuple[int, int, int] = input_shape(recipe.data, self.data.shape)
        splits = training_splits(self.data, recipe.data)
        self.examples, self.validation = splits.train, splits.validation
        self.skipped = splits.skipped + splits.skipped_in_validation
        size = self.shape[:2]
        classes = len(self.data.classes)
        self.stream = TrainingStream(
            self.examples, recipe.data, size, recipe.augment, recipe.seed, classes
        )
        self.total_steps = total_steps(
            recipe.train, self.stream.steps_per_epoch, recipe.data.batch_size
        )
        if recipe.schedule.warmup_epochs * self.stream.steps_per_epoch >= self.total_steps:
            raise UsageError(
                f"schedule.warmup_epochs of {recipe.schedule.warmup_epochs} epochs",
                allowed=f"less than the {self.total_steps} steps that training takes",
            )
        for key, needed in (
            ("train.early_stopping", recipe.train.early_stopping is not None),
            ("schedule.name", SCHEDULES.get(recipe.schedule.name).facts.get("needs_validation")),
        ):
            if needed and self.validation is None:
                raise UsageError(
                    f"{key} needs a validation split", allowed="set data.validation above 0"
                )
        runtime.prepare(seed=recipe.seed, deterministic=recipe.train.deterministic)
        self.strategy = runtime.strategy(recipe.train.strategy)
        self.replicas: int = self.strategy.num_replicas_in_sync
        if recipe.data.batch_size % (self.replicas * recipe.train.accumulate):
            parts = f", times train.accumulate of {recipe.train.accumulate}"
            raise UsageError(
                f"data.batch_size of {recipe.data.batch_size}",
                allowed=f"a multiple of the {self.replicas} replicas"
                + parts * (recipe.train.accumulate > 1),
            )
        self.preprocess = preprocess(self.data, recipe.data)
        with runtime.precision(recipe.train.precision), self.strategy.scope():
            first = beginning.Beginning({}, architecture or ())
            if architecture is None:
                first = beginning.begin(recipe, self.data, self.shape, self._others.get("init"))
            self._first, self.architecture = first.weights, first.architecture
            self._lesson = beginning.lesson(
                recipe, self.data, self.shape, self.preprocess, self._others.get("teacher")
            )
        # Names and random weights as if nothing had been built before.
        runtime.prepare(seed=recipe.seed, deterministic=recipe.train.deterministic)
        with runtime.precision(recipe.train.precision), self.strategy.scope():
            self.model = self._built()
            self.network = without_auxiliary(self.model)
            weights.freeze(self.network, recipe.model)
            weights_to_train = self.model.trainable_variables
            self.optimizer = build_optimizer(recipe.optimizer, recipe.train, weights_to_train)
            self.slow = steps.slow_weights(weights_to_train) if recipe.train.lookahead else []
            self.averaged = None
            if recipe.train.ema is not None:
                self.averaged = self._built()
            self._masking = beginning.masking(
                recipe, self.architecture, self.network, self.averaged, self.total_steps
            )
        compiled = partial(
            steps.training_steps,
            recipe,
            self.model,
            self.optimizer,
            self.strategy,
            self.preprocess,
            classes,
            averaged=self.averaged,
            slow=self.slow,
            masking=self._masking,
            lesson=self._lesson,
            xla=settings.xla,
        )
        self.train_steps = compiled()
        # Of those that come before, the step that ends them and what they run.
        self._on_small_images = [
            (each.until * self.stream.steps_per_epoch, compiled(size=each.size))
            for each in recipe.train.image_sizes
        ]
        network = self.network if self.averaged is None else without_auxiliary(self.averaged)
        self._evaluate_batch = steps.evaluation_step(recipe, network, self.preprocess, classes)

    def _built(self) -> Any:
        """Builds the model that is trained, with random weights."""
        classes = len(self.data.classes)
        model = network.build(self.recipe.model, self.shape, classes, self.architecture)
        return self._lesson.with_hints(model) if self._lesson else model

    def initialize(self) -> None:
        """Gives the network the weights that are not random: others', or those of the images."""
        model, named = self.recipe.model, {v.path: v for v in self.model.weights}
        for path, value in self._first.items():
            named[path].assign(value)
        from_images = MODELS.get(model.name).facts.get("from_images")
        if from_images and not self._first:
            from_images(self.network, self._some_images())
        if self.recipe.compress:
            stage_of(self.recipe.compress[-1]).initialize(self.network, self._some_images)
        if self._masking is not None:
            self._masking.initialize()

    def _some_images(self) -> np.ndarray:
        """Returns normalised training images, (examples, height, width, channels) float32."""
        some = self.examples.take(slice(INITIAL_IMAGES))
        batches = evaluation_batches(some, self.recipe.data, self.shape[:2], len(some))
        ((images, *_),) = batches
        return self.preprocess(images).numpy()

    def about_data(self) -> DataFacts:
        """Returns what environment.json says of the data."""
        return DataFacts.of(
            self.data,
            self.shape,
            self.preprocess,
            train_examples=len(self.examples),
            validation_examples=len(self.validation) if self.validation else 0,
            skipped_images=list(self.skipped),
            data_dir=str(self._data_dir.absolute()) if self._data_dir else None,
        )

    def fit(
        self, run: Run, listener: Listener, *, resume: bool = False, notes: Sequence[str] = ()
    ) -> Run:
        """Trains to the end, from the newest checkpoint if there is one to resume."""
        recipe, start = self.recipe, time.perf_counter()
        rate = LearningRate(
            recipe.schedule,
            recipe.optimizer.options()["lr"],
            self.total_steps,
            self.stream.steps_per_epoch,
        )
        progress = Progress()
        notes = [*notes, *(f"skipped {name}: not an image" for name in self.skipped)]
        if resume:
            saved, damaged = checkpoint.newest(run.checkpoints)
            notes += [f"damaged and set aside: {error}" for error in damaged]
            if saved is not None:
                progress = self._restored(run, saved, rate)
            elif (epochs := len(run.metrics())) > 1:  # the first epoch's checkpoint was written
                raise RunError(
                    f"no checkpoint is left of {epochs} epochs", where=str(run.checkpoints)
                )
            else:
                self.initialize()
        if self.averaged is not None and progress.step == 0:
            self.averaged.set_weights(self.model.get_weights())
        run.write_metrics(progress.rows)
        events = Events(run.path / "tensorboard")
        listener.started(run, self.total_steps, progress.step, notes)
        with signals.caught() as interrupted, checkpoint.Writer() as writer:
            session = _Session(run, rate, events, listener, writer, interrupted)
            if recipe.train.on_nan == "rollback" and progress.step == 0:
                self._save(session, progress)
            while True:
                try:
                    self._train(session, progress)
                    break
                except DivergedError as error:
                    progress = self._rolled_back(session, progress, error)
            writer.wait()
            share = writer.seconds / (time.perf_counter() - start)
            listener.noted(f"saving took {writer.seconds:.1f} s of training, {share:.1%} of it")
        facts = {"step": progress.step, "epochs": len(progress.rows)}
        files.write_json(run.path / "finished.json", facts | {"rollbacks": progress.rollbacks})
        return run

    def _train(self, session: _Session, progress: Progress) -> None:
        """Trains from where the progress is to the end."""
        due = checkpoint.schedule(self.recipe.train.checkpoint_every, progress.step)
        iterator = iter(
            self.strategy.experimental_distribute_dataset(self.stream.dataset(progress.step))
        )
        per_epoch = self.stream.steps_per_epoch
        while progress.step < self.total_steps and not self._stopped_early(progress):
            epoch_end = min((progress.step // per_epoch + 1) * per_epoch, self.total_steps)
            self._call(iterator, session, progress, epoch_end)
            if progress.step == epoch_end:
                self._end_epoch(session, progress)
                self._save(session, progress)
            elif session.interrupted() or due(progress.step):
                self._save(session, progress)
            session.writer.check()
            if session.interrupted() and progress.step < self.total_steps:
                session.writer.wait()
                raise InterruptedRun(
                    f"interrupted and saved at step {progress.step} of {self.total_steps}",
                    where=str(session.run.path),
                    allowed=f"continue with --resume --run-dir {session.run.path}",
                )

    def _restored(self, run: Run, saved: Checkpoint, rate: LearningRate) -> Progress:
        """Takes over a checkpoint."""
        checkpoint.assign(self._variables(), saved.arrays, run.checkpoints)
        progress = Progress(**saved.state)
        rate.restore(progress.learning_rate)
        return progress

    def _rolled_back(self, session: _Session, progress: Progress, error: DivergedError) -> Progress:
        """Goes back to the last checkpoint, from where training goes on with a lower rate.

        Raises:
            DivergedError: the recipe does not want that, or it was done often enough.
        """
        session.writer.wait()
        saved, _ = checkpoint.newest(session.run.checkpoints)
        if saved is not None:
            step = saved.state["step"]
            error = DivergedError(
                error.what,
                where=str(session.run.path),
                allowed=f"{error.allowed}; the checkpoint of step {step} is intact",
            )
        rollback = self.recipe.train.on_nan == "rollback"
        if saved is None or not rollback or len(progress.rollbacks) == ROLLBACKS:
            raise error from None
        before = self._restored(session.run, saved, session.rate)
        before.rollbacks = [*progress.rollbacks, {"to_step": step, "reason": error.what}]
        factor = ROLLBACK_FACTOR ** len(before.rollbacks)
        session.run.write_metrics(before.rows)
        session.listener.noted(
            f"{error.what}: back to step {step}, with the learning rate times {factor:g}"
        )
        return before

    def _call(
        self, iterator: Iterator[Any], session: _Session, progress: Progress, epoch_end: int
    ) -> None:
        """Runs some steps, and not beyond the end of the epoch."""
        start = time.perf_counter()
        count = min(self.recipe.train.steps_per_call, epoch_end - progress.step)
        # Always of one length, so that the steps are traced once.
        rates = np.zeros(self.recipe.train.steps_per_call, np.float32)
        rates[:count] = [_rate(session.rate, progress, progress.step + i) for i in range(count)]
        sparsities = np.full_like(rates, np.nan)
        if self._masking is not None:
            following = range(progress.step, progress.step + count)
            sparsities[:count] = [self._masking.sparsity_after(step) for step in following]
        try:
            small = (run for end, run in self._on_small_images if progress.step < end)
            run_steps = next(small, self.train_steps)
            found = run_steps(
                iterator, tf.constant(rates), tf.constant(sparsities), tf.constant(count)
            )
        except tf.errors.OpError:
            if self.stream.failure is not None:
                raise self.stream.failure from None
            raise
        losses, right, sums = (values.numpy() for values in found)
        for what, values in (("the loss", losses), ("a weight", sums)):
            finite = np.isfinite(values)
            if not finite.all():
                step = progress.step + int(np.argmin(finite))
                raise _diverged(f"{what} is {values[~finite][0]} at step {step}")
        images = count * self.recipe.data.batch_size
        progress.step += count
        progress.seconds += time.perf_counter() - start
        # One by one, so that the sum does not depend on where a call began.
        for key, values in (("loss", losses), ("top1", right), ("images", [images])):
            progress.sums[key] = sum(map(float, values), progress.sums.get(key, 0.0))
        seen = progress.sums["images"]
        session.listener.progressed(
            progress.step,
            progress.sums["loss"] / seen,
            progress.sums["top1"] / seen,
            seen / progress.seconds,
        )

    def _end_epoch(self, session: _Session, progress: Progress) -> None:
        """Validates, writes the epoch's row, and keeps the weights if they are the best.

        Raises:
            DivergedError: a weight or the validation loss is not finite; nothing is written then.
        """
        with session.writer.counted():
            arrays = self._arrays(progress.step)
        seen = progress.sums["images"]
        row: dict[str, Any] = {
            "epoch": len(progress.rows) + 1,
            "step": progress.step,
            "lr": _rate(session.rate, progress, progress.step - 1),
            "train": {key: progress.sums[key] / seen for key in ("loss", "top1")},
            "throughput_images_per_s": round(seen / progress.seconds, 1),
            "seconds": round(progress.seconds, 2),
        }
        is_best = True  # without validation, the last weights are the best
        if self.validation is not None:
            row["validation"] = self._validate()
            if not math.isfinite(row["validation"]["loss"]):
                raise _diverged(f"the validation loss is not finite at step {progress.step}")
            session.rate.observe(row["validation"]["loss"])
            is_best = self._judge(row["validation"], progress)
        if progress.rollbacks:
            row["rollbacks"] = len(progress.rollbacks)
        progress.rows.append(row)
        if is_best:
            best = Checkpoint(
                checkpoint.kept_weights(arrays),
                {key: row.get(key) for key in ("step", "epoch", "validation")},
            )
            session.writer.submit(checkpoint.save, session.run.best, best)
        progress.sums, progress.seconds = {}, 0.0
        session.writer.submit(session.run.write_metrics, list(progress.rows))
        session.events.write(row)
        session.listener.epoch_ended(row)

    def _judge(self, validation: dict[str, float], progress: Progress) -> bool:
        """Tells whether an epoch is the best so far, and counts those without an improvement."""
        early = self.recipe.train.early_stopping
        by_loss = early is not None and early.metric == "loss"
        score = -validation["loss"] if by_loss else validation["top1"]
        margin = early.min_delta if early else 0.0
        progress.epochs_without += 1
        if progress.reference is None or score > progress.reference + margin:
            progress.reference, progress.epochs_without = score, 0
        if self._masking is not None and not self._masking.is_settled(progress.step):
            # Weights that are going to be pruned would be the best.
            progress.best_score, progress.reference, progress.epochs_without = None, None, 0
            return True
        is_best = progress.best_score is None or score > progress.best_score
        if is_best:
            progress.best_score = score
        return is_best

    def _validate(self) -> dict[str, float]:
        loss = right = 0.0
        assert self.validation is not None
        data = self.recipe.data
        batches = evaluation_batches(self.validation, data, self.shape[:2], data.batch_size)
        for images, labels, count in batches:
            losses, hits = self._evaluate_batch(images, labels)
            loss += float(losses.numpy()[:count].sum(dtype=np.float64))
            right += int(hits.numpy()[:count].sum())
        return {"loss": loss / len(self.validation), "top1": right / len(self.validation)}

    def _stopped_early(self, progress: Progress) -> bool:
        early = self.recipe.train.early_stopping
        return early is not None and progress.epochs_without >= early.patience

    def _arrays(self, step: int) -> dict[str, np.ndarray]:
        """Returns every variable of the model, its generators and the optimizer, by its place.

        Raises:
            DivergedError: one of them is not finite.
        """
        # Copies, for they are written while training goes on.
        arrays = {key: np.array(each.numpy()) for key, each in self._variables().items()}
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise _diverged(f"{key} has a value that is not finite at step {step}")
        return arrays

    def _variables(self) -> dict[str, Any]:
        model = checkpoint.variables_by_name("model", self.model.variables)
        named = model | checkpoint.variables_by_name("optimizer", self.optimizer.variables)
        named |= checkpoint.variables_by_name("slow", self.slow)
        if self._masking is not None:
            named |= checkpoint.variables_by_name("mask", self._masking.variables)
        if self.averaged is not None:
            # Under the model's names: Keras calls a second layer without a name otherwise.
            averages = (name.replace("model/", "average/", 1) for name in model)
            named |= dict(zip(averages, self.averaged.variables, strict=True))
        return named

    def _save(self, session: _Session, progress: Progress) -> None:
        progress.learning_rate = session.rate.state()
        folder = session.run.checkpoints / str(progress.step)
        session.writer.wait()  # no more than one interval is ever lost
        with session.writer.counted():
            saved = Checkpoint(self._arrays(progress.step), asdict(progress))
        session.writer.submit(checkpoint.save, folder, saved)
        session.writer.submit(checkpoint.keep_last, folder.parent, KEPT_CHECKPOINTS)


def _rate(rate: LearningRate, progress: Progress, step: int) -> float:
    """Returns the learning rate of a step."""
    return rate.at(step) * ROLLBACK_FACTOR ** len(progress.rollbacks)


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        what, allowed="a lower optimizer.lr or a longer schedule.warmup_epochs may help"
    )
