"""Training: our own loop, which can stop and go on at any step.

Several steps run in one call into TensorFlow. What a step does depends on the state and on the
step's number alone, and the state, arrays and plain values, is what a checkpoint holds.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import checkpoint, files, runtime, weights
from cnnbench.checkpoint import Checkpoint
from cnnbench.data.datasets import Access, open_dataset
from cnnbench.data.examples import Dataset
from cnnbench.data.pipeline import (
    TrainingStream,
    evaluation_batches,
    preprocess,
    training_splits,
)
from cnnbench.errors import DivergedError, InterruptedRun, RunError, UsageError
from cnnbench.lazy import tf
from cnnbench.listener import Listener, Silence
from cnnbench.models import build_model, without_auxiliary
from cnnbench.optim import build_optimizer, penalty
from cnnbench.parts import LOSSES, SCHEDULES
from cnnbench.recipe import Recipe, Train, input_shape
from cnnbench.run import DataFacts, Run, begin, new_run
from cnnbench.runtime import Choice, Settings
from cnnbench.schedules import LearningRate
from cnnbench.tasks.classification import in_top_k

KEPT_CHECKPOINTS = 2


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


def train(
    recipe: Recipe,
    *,
    access: Access | None = None,
    run_dir: Path | None = None,
    listener: Listener | None = None,
    choice: Choice | None = None,
) -> Run:
    """Trains a network as a recipe says, in a new run directory.

    Args:
        recipe: what to train.
        access: where data sets lie.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.
        listener: who is told of the progress.
        choice: how TensorFlow runs; None: as the recipe says, without a measurement.

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
    with new_run(run_dir, recipe) as run:
        trainer = Trainer(recipe, access or Access(), choice.settings)
        weights.start_from(trainer.network, recipe.model)
        begin(run, trainer.about_data(), choice.about())
        return trainer.fit(run, listener or Silence())


def resume(run: Run, *, access: Access | None = None, listener: Listener | None = None) -> Run:
    """Continues an interrupted run at the very next step.

    Raises:
        RunError: the run is finished or locked, or no checkpoint of it is whole, or the data is
            not what it was.
        InterruptedRun, DivergedError, DataError: as for `train`.
    """
    if run.finished:
        raise RunError("the run is finished: there is nothing to resume", where=str(run.path))
    settings = run.settings()
    runtime.apply(settings)
    with run.locked():
        files.recover(run.best)
        before = run.data()
        if access is None or access.data_dir is None:
            access = Access(Path(before.data_dir) if before.data_dir else None)
        trainer = Trainer(run.recipe, access, settings)
        now = trainer.about_data()
        for key, value in before.model_dump(exclude={"data_dir"}).items():
            if value != getattr(now, key):
                raise RunError(
                    f"the data set changed: {key} was {value}, is {getattr(now, key)}",
                    where=str(run.path),
                )
        return trainer.fit(run, listener or Silence(), resume=True)


class Trainer:
    """A recipe made ready to run: data, network, optimizer and the compiled steps."""

    def __init__(self, recipe: Recipe, access: Access, settings: Settings):
        self.recipe, self._data_dir, self._xla = recipe, access.data_dir, settings.xla
        self.data: Dataset = open_dataset(recipe.data, access)
        self.shape: tuple[int, int, int] = input_shape(recipe.data, self.data.shape)
        splits = training_splits(self.data, recipe.data)
        self.examples, self.validation = splits.train, splits.validation
        self.skipped = splits.skipped + splits.skipped_in_validation
        size = self.shape[:2]
        self.stream = TrainingStream(self.examples, recipe.data, size, recipe.augment, recipe.seed)
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
        if recipe.data.batch_size % self.strategy.num_replicas_in_sync:
            raise UsageError(
                f"data.batch_size of {recipe.data.batch_size}",
                allowed=f"a multiple of the {self.strategy.num_replicas_in_sync} replicas",
            )
        self.preprocess = preprocess(self.data, recipe.data)
        with runtime.precision(recipe.train.precision), self.strategy.scope():
            self.model = build_model(
                recipe.model, self.shape, len(self.data.classes), auxiliary=True
            )
            self.network = without_auxiliary(self.model)
            weights.freeze(self.network, recipe.model)
            self.optimizer = build_optimizer(
                recipe.optimizer,
                self.model.trainable_variables,
                loss_scaling=recipe.train.precision == "mixed_float16",
            )
        self.train_steps = self._compile_training()
        self._evaluate_batch = self._compile_evaluation()

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

    def fit(self, run: Run, listener: Listener, *, resume: bool = False) -> Run:
        """Trains to the end, from the newest checkpoint if there is one to resume."""
        recipe, steps_per_epoch = self.recipe, self.stream.steps_per_epoch
        rate = LearningRate(
            recipe.schedule,
            recipe.optimizer.options()["lr"],
            self.total_steps,
            steps_per_epoch,
        )
        progress, notes = Progress(), [f"skipped {name}: not an image" for name in self.skipped]
        if resume:
            saved, damaged = checkpoint.newest(run.checkpoints)
            notes += [f"damaged and set aside: {error}" for error in damaged]
            if saved is not None:
                checkpoint.assign(self._variables(), saved.arrays, run.checkpoints)
                progress = Progress(**saved.state)
                rate.restore(progress.learning_rate)
            else:
                weights.start_from(self.network, recipe.model)
        run.write_metrics(progress.rows)
        events = tf.summary.create_file_writer(str(run.path / "tensorboard"))
        listener.started(run, self.total_steps, progress.step, notes)
        due = _save_is_due(recipe.train.checkpoint_every, progress.step)
        iterator = iter(
            self.strategy.experimental_distribute_dataset(self.stream.dataset(progress.step))
        )
        with _signals() as interrupted:
            while progress.step < self.total_steps and not self._stopped_early(progress):
                epoch_end = min(
                    (progress.step // steps_per_epoch + 1) * steps_per_epoch, self.total_steps
                )
                self._call(iterator, rate, progress, epoch_end, listener)
                if progress.step == epoch_end:
                    self._end_epoch(run, rate, progress, events, listener)
                    self._save(run, progress, rate)
                elif interrupted() or due(progress.step):
                    self._save(run, progress, rate)
                if interrupted() and progress.step < self.total_steps:
                    raise InterruptedRun(
                        f"interrupted and saved at step {progress.step} of {self.total_steps}",
                        where=str(run.path),
                        allowed=f"continue with --resume --run-dir {run.path}",
                    )
        files.write_json(
            run.path / "finished.json", {"step": progress.step, "epochs": len(progress.rows)}
        )
        return run

    def _call(
        self,
        iterator: Iterator[Any],
        rate: LearningRate,
        progress: Progress,
        epoch_end: int,
        listener: Listener,
    ) -> None:
        """Runs some steps, and not beyond the end of the epoch."""
        start = time.perf_counter()
        count = min(self.recipe.train.steps_per_call, epoch_end - progress.step)
        # Always of one length, so that the steps are traced once.
        rates = np.zeros(self.recipe.train.steps_per_call, np.float32)
        rates[:count] = [rate.at(progress.step + i) for i in range(count)]
        try:
            losses, right = self.train_steps(iterator, tf.constant(rates), tf.constant(count))
        except tf.errors.OpError:
            if self.stream.failure is not None:
                raise self.stream.failure from None
            raise
        losses, right = losses.numpy(), right.numpy()
        finite = np.isfinite(losses)
        if not finite.all():
            step = progress.step + int(np.argmin(finite))
            raise _diverged(f"the loss is {losses[~finite][0]} at step {step}")
        images = count * self.recipe.data.batch_size
        progress.step += count
        progress.seconds += time.perf_counter() - start
        # One by one, so that the sum does not depend on where a call began.
        for key, values in (("loss", losses), ("top1", right), ("images", [images])):
            progress.sums[key] = sum(map(float, values), progress.sums.get(key, 0.0))
        seen = progress.sums["images"]
        listener.progressed(
            progress.step,
            progress.sums["loss"] / seen,
            progress.sums["top1"] / seen,
            seen / progress.seconds,
        )

    def _end_epoch(
        self, run: Run, rate: LearningRate, progress: Progress, events: Any, listener: Listener
    ) -> None:
        """Validates, writes the epoch's row, and keeps the weights if they are the best.

        Raises:
            DivergedError: a weight or the validation loss is not finite; nothing is written then.
        """
        arrays = self._arrays(progress.step)
        seen = progress.sums["images"]
        row: dict[str, Any] = {
            "epoch": len(progress.rows) + 1,
            "step": progress.step,
            "lr": rate.at(progress.step - 1),
            "train": {key: progress.sums[key] / seen for key in ("loss", "top1")},
            "throughput_images_per_s": round(seen / progress.seconds, 1),
            "seconds": round(progress.seconds, 2),
        }
        is_best = True  # without validation, the last weights are the best
        if self.validation is not None:
            row["validation"] = self._validate()
            if not math.isfinite(row["validation"]["loss"]):
                raise _diverged(f"the validation loss is not finite at step {progress.step}")
            rate.observe(row["validation"]["loss"])
            is_best = self._judge(row["validation"], progress)
        progress.rows.append(row)
        if is_best:
            model = {k: v for k, v in arrays.items() if k.startswith("model/")}
            keys = ("step", "epoch", "validation")
            checkpoint.save(run.best, Checkpoint(model, {key: row.get(key) for key in keys}))
        progress.sums, progress.seconds = {}, 0.0
        run.write_metrics(progress.rows)
        _write_events(events, row)
        listener.epoch_ended(row)

    def _judge(self, validation: dict[str, float], progress: Progress) -> bool:
        """Tells whether an epoch is the best so far, and counts those without an improvement."""
        early = self.recipe.train.early_stopping
        by_loss = early is not None and early.metric == "loss"
        score = -validation["loss"] if by_loss else validation["top1"]
        margin = early.min_delta if early else 0.0
        progress.epochs_without += 1
        if progress.reference is None or score > progress.reference + margin:
            progress.reference, progress.epochs_without = score, 0
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
        arrays = {key: variable.numpy() for key, variable in self._variables().items()}
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise _diverged(f"{key} has a value that is not finite at step {step}")
        return arrays

    def _variables(self) -> dict[str, Any]:
        return checkpoint.variables_by_name("model", self.model.variables) | (
            checkpoint.variables_by_name("optimizer", self.optimizer.variables)
        )

    def _save(self, run: Run, progress: Progress, rate: LearningRate) -> None:
        progress.learning_rate = rate.state()
        folder = run.checkpoints / str(progress.step)
        checkpoint.save(folder, Checkpoint(self._arrays(progress.step), asdict(progress)))
        checkpoint.keep_last(run.checkpoints, KEPT_CHECKPOINTS)

    def _compile_training(self) -> Callable[..., Any]:
        recipe, model, optimizer, strategy = self.recipe, self.model, self.optimizer, self.strategy
        variables, prepare = model.trainable_variables, self.preprocess
        classes, batch_size = len(self.data.classes), recipe.data.batch_size
        replicas = strategy.num_replicas_in_sync
        l1, l2 = recipe.regularization.l1, recipe.regularization.l2
        weight = recipe.model.options().get("auxiliary_weight", 0.0)

        def step(images: Any, labels: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                outputs = tf.nest.flatten(model(prepare(images), training=True))
                logits, *auxiliary = (tf.cast(output, tf.float32) for output in outputs)
                hot = tf.one_hot(labels, classes)
                losses = LOSSES.build(recipe.loss, logits, hot)
                loss = tf.reduce_sum(losses) / batch_size
                for other in auxiliary:
                    loss += (
                        weight * tf.reduce_sum(LOSSES.build(recipe.loss, other, hot)) / batch_size
                    )
                if l1 or l2:
                    loss += penalty(variables, l1, l2) / replicas
                loss = optimizer.scale_loss(loss)
            optimizer.apply(tape.gradient(loss, variables), variables)
            right = tf.cast(in_top_k(logits, labels, 1), tf.float32)
            return tf.reduce_sum(losses), tf.reduce_sum(right)

        run_step = tf.function(step, jit_compile=True) if self._xla else step

        @tf.function(autograph=True)
        def steps(iterator: Any, rates: Any, count: Any) -> tuple[Any, Any]:
            losses, right = (tf.TensorArray(tf.float32, count) for _ in range(2))
            for i in tf.range(count):
                optimizer.learning_rate.assign(rates[i])
                one = strategy.run(run_step, next(iterator))
                loss_sum, right_sum = (
                    strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) for value in one
                )
                losses, right = losses.write(i, loss_sum), right.write(i, right_sum)
            return losses.stack(), right.stack()

        return steps

    def _compile_evaluation(self) -> Callable[..., Any]:
        classes = len(self.data.classes)

        @tf.function(autograph=False)
        def evaluate(images: Any, labels: Any) -> tuple[Any, Any]:
            logits = tf.cast(self.network(self.preprocess(images), training=False), tf.float32)
            losses = LOSSES.build(self.recipe.loss, logits, tf.one_hot(labels, classes))
            return losses, in_top_k(logits, labels, 1)

        return evaluate


def total_steps(train: Train, steps_per_epoch: int, batch_size: int) -> int:
    """Returns how many steps a recipe trains, whichever unit it counts in; at least 1."""
    if train.steps is not None:
        return train.steps
    if train.examples is not None:
        return max(1, train.examples // batch_size)
    assert train.epochs is not None
    return max(1, round(train.epochs * steps_per_epoch))


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        what,
        allowed="a lower optimizer.lr or a longer schedule.warmup_epochs may help; checkpoints "
        "that were saved before are intact",
    )


def _save_is_due(every: int | str, first_step: int) -> Callable[[int], bool]:
    """Returns a function that says whether to save at a step, by steps or by minutes."""
    last_step, last_time = first_step, time.monotonic()

    def due(step: int) -> bool:
        nonlocal last_step, last_time
        now = time.monotonic()
        if isinstance(every, int):
            is_due = step // every > last_step // every
        else:
            is_due = now - last_time >= 60 * int(every.removesuffix("m"))
        if is_due:
            last_step, last_time = step, now
        return is_due

    return due


def _write_events(events: Any, row: dict[str, Any]) -> None:
    """Writes an epoch's scalars for TensorBoard, in its format but without its package."""
    scalars = {"lr": row["lr"]}
    for split in ("train", "validation"):
        scalars |= {f"{split}/{key}": value for key, value in row.get(split, {}).items()}
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR"
    )
    with events.as_default(step=row["step"]):
        for tag, value in scalars.items():
            tf.summary.write(tag, tf.constant(value, tf.float32), metadata=metadata)
    events.flush()


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; a second one acts as usual."""
    came: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals go to whoever has it
        before.clear()
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
