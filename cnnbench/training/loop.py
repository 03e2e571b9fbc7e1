"""The training loop of one run: epochs, checkpoints, early stopping and rollback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cnnbench.errors import DivergedError, InterruptedRun
from cnnbench.optim.schedules import LearningRate
from cnnbench.recipe.sections import EarlyStopping
from cnnbench.runs import checkpoint, variables
from cnnbench.runs.checkpoint import Checkpoint
from cnnbench.runs.run import Run
from cnnbench.training import writer as writer_module
from cnnbench.training.callbacks import Callbacks
from cnnbench.training.learner import Learner
from cnnbench.training.state import diverged
from cnnbench.training.tensorboard import Events

KEPT_CHECKPOINTS = 2
MAX_ROLLBACKS = 3
ROLLBACK_FACTOR = 0.5  # each rollback multiplies the learning rate by it


@dataclass
class Progress:
    """The part of the training state that is not arrays; a checkpoint stores it as JSON.

    step: training steps done.
    sums: loss, score and number of images, summed over the current epoch.
    seconds: training time of the current epoch.
    rows: rows of metrics.jsonl.
    best_score: validation score of the weights in best/.
    reference: the last score that improved by more than min_delta.
    epochs_without: epochs since then.
    learning_rate: state of the learning rate.
    rollbacks: step and reason of each rollback.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_score: float | None = None
    reference: float | None = None
    epochs_without: int = 0
    learning_rate: dict[str, Any] = field(default_factory=dict)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, score: float, early: EarlyStopping | None, *, is_settled: bool = True) -> bool:
        """Returns whether an epoch is the best so far, and counts epochs without improvement.

        Args:
            score: validation score; higher is better.
            early: the recipe's early stopping, if any.
            is_settled: whether pruning is complete. Until then each epoch counts as the best:
                earlier ones score higher only because fewer of their weights are pruned.
        """
        margin = early.min_delta if early else 0.0
        if not is_settled:
            self.best_score, self.reference, self.epochs_without = None, None, 0
            return True
        self.epochs_without += 1
        if self.reference is None or score > self.reference + margin:
            self.reference, self.epochs_without = score, 0
        is_best = self.best_score is None or score > self.best_score
        if is_best:
            self.best_score = score
        return is_best

    def is_stopped(self, early: EarlyStopping | None) -> bool:
        """Returns whether early stopping ends the training."""
        return early is not None and self.epochs_without >= early.patience


class Training:
    """The training of one run, at its first step or where a checkpoint left it.

    Args:
        learner: trains the network.
        run: the run directory it is saved to.
    """

    def __init__(self, learner: Learner, run: Run):
        self.learner, self.run, self.progress = learner, run, Progress()
        self.rate = LearningRate(
            learner.recipe.schedule,
            learner.recipe.optimizer.options()["lr"],
            learner.total_steps,
            learner.stream.steps_per_epoch,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Restores weights, optimizer, progress and learning rate from a checkpoint.

        Raises:
            RunError: the arrays of the checkpoint belong to another network.
        """
        variables.assign(self.learner.state.variables(), saved.arrays, self.run.checkpoints)
        self.progress = Progress(**saved.state)
        self.rate.restore(self.progress.learning_rate)

    def rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, which each rollback lowers."""
        return self.rate.at(step) * ROLLBACK_FACTOR ** len(self.progress.rollbacks)


class Loop:
    """Trains epoch by epoch until the training ends.

    Args:
        training: the training to run.
        callbacks: the callbacks that training reports to.
        writer: writes checkpoints in the background.
        interrupted: returns whether a signal asked to stop.
    """

    def __init__(
        self,
        training: Training,
        callbacks: Callbacks,
        writer: writer_module.Writer,
        interrupted: Callable[[], bool],
    ):
        self._training, self._learner, self._run = training, training.learner, training.run
        self._recipe = training.learner.recipe
        self._callbacks, self._writer, self._interrupted = callbacks, writer, interrupted
        self._events = Events(self._run.path / "tensorboard")

    def train(self) -> None:
        """Trains to the end, rolling back when training diverges if the recipe says so.

        Raises:
            DivergedError: training diverged, and no rollback is allowed or left.
            InterruptedRun: a signal came; everything is saved.
            DataError: an image that a step needs cannot be read; or, after everything is saved, an
                image that a later step needs.
            RunError: the run directory cannot be written.
        """
        if self._recipe.train.on_nan == "rollback" and self._training.progress.step == 0:
            self._save()
        while True:
            try:
                self._train()
                return
            except DivergedError as error:
                self._roll_back(error)

    def _train(self) -> None:
        """Trains from the current step to the end."""
        learner, progress = self._learner, self._training.progress
        due = writer_module.schedule(self._recipe.train.checkpoint_every, progress.step)
        per_epoch, last = learner.stream.steps_per_epoch, learner.total_steps
        early = self._recipe.train.early_stopping
        with learner.batches(progress.step) as iterator:
            while progress.step < last and not progress.is_stopped(early):
                epoch_end = min((progress.step // per_epoch + 1) * per_epoch, last)
                self._run_steps(iterator, epoch_end)
                failure = learner.inspection.failure()
                if progress.step == epoch_end:
                    self._end_epoch()
                    self._save()
                elif failure or self._interrupted() or due(progress.step):
                    self._save()
                self._writer.check()
                if failure and progress.step < last and not progress.is_stopped(early):
                    self._writer.wait()
                    self._callbacks.noted(f"saved at step {progress.step} of {last}")
                    with self._recipe.located():
                        raise failure
                if self._interrupted() and progress.step < last:
                    self._writer.wait()
                    raise InterruptedRun(
                        f"interrupted and saved at step {progress.step} of {last}",
                        where=str(self._run.path),
                        allowed=f"continue with --resume --run-dir {self._run.path}",
                    )

    def _roll_back(self, error: DivergedError) -> None:
        """Restores the last checkpoint, from which training continues at a lower learning rate.

        Raises:
            DivergedError: rollbacks are off or used up, or there is no checkpoint.
        """
        training = self._training
        self._writer.wait()
        saved, _ = checkpoint.newest(self._run.checkpoints)
        if saved is not None:
            step = saved.state["step"]
            error = DivergedError(
                error.what,
                where=str(self._run.path),
                allowed=f"{error.allowed}; the checkpoint of step {step} is intact",
            )
        rollback, done = self._recipe.train.on_nan == "rollback", training.progress.rollbacks
        if saved is None or not rollback or len(done) == MAX_ROLLBACKS:
            raise error from None
        training.restore(saved)
        training.progress.rollbacks = [*done, {"to_step": step, "reason": error.what}]
        factor = ROLLBACK_FACTOR ** len(training.progress.rollbacks)
        self._run.write_metrics(training.progress.rows)
        self._callbacks.noted(
            f"{error.what}: back to step {step}, with the learning rate times {factor:g}"
        )

    def _run_steps(self, iterator: Iterator[Any], epoch_end: int) -> None:
        """Runs the steps of one call, but none after the end of the epoch."""
        learner, progress = self._learner, self._training.progress
        start = time.perf_counter()
        per_call = self._recipe.train.steps_per_call
        count = min(per_call, epoch_end - progress.step)
        # A constant length, so that the steps are traced once.
        rates = np.zeros(per_call, np.float32)
        rates[:count] = [self._training.rate_at(progress.step + i) for i in range(count)]
        losses, hits, sums = learner.run_steps(iterator, progress.step, rates, count)
        for what, values in (("the loss", losses), ("a weight", sums)):
            finite = np.isfinite(values)
            if not finite.all():
                step = progress.step + int(np.argmin(finite))
                raise diverged(f"{what} is {values[~finite][0]} at step {step}")
        images = count * self._recipe.data.batch_size
        progress.step += count
        progress.seconds += time.perf_counter() - start
        # Added one by one, so that the sum does not depend on how steps are grouped into calls.
        score = learner.task.score.key
        for key, numbers in (("loss", losses), (score, hits), ("images", [images])):
            progress.sums[key] = sum(map(float, numbers), progress.sums.get(key, 0.0))
        seen = progress.sums["images"]
        self._callbacks.progressed(
            progress.step,
            progress.sums["loss"] / seen,
            progress.sums[score] / seen,
            seen / progress.seconds,
        )

    def _end_epoch(self) -> None:
        """Validates, writes the epoch's row, and saves the weights if they are the best.

        Raises:
            DivergedError: a weight or the validation loss is not finite; nothing is written.
        """
        learner, progress = self._learner, self._training.progress
        with self._writer.counted():
            arrays = learner.state.arrays(progress.step)
        seen = progress.sums["images"]
        row: dict[str, Any] = {
            "epoch": len(progress.rows) + 1,
            "step": progress.step,
            "lr": self._training.rate_at(progress.step - 1),
            "train": {key: progress.sums[key] / seen for key in ("loss", learner.task.score.key)},
            "throughput_images_per_s": round(seen / progress.seconds, 1),
            "seconds": round(progress.seconds, 2),
        }
        is_best = True  # without validation, the last weights are the best
        if learner.validation is not None:
            row["validation"] = learner.validate()
            if not math.isfinite(row["validation"]["loss"]):
                raise diverged(f"the validation loss is not finite at step {progress.step}")
            self._training.rate.observe(row["validation"]["loss"], progress.step)
            is_best = progress.judge(
                self._score(row["validation"]),
                self._recipe.train.early_stopping,
                is_settled=learner.is_settled(progress.step),
            )
        if progress.rollbacks:
            row["rollbacks"] = len(progress.rollbacks)
        progress.rows.append(row)
        if is_best:
            best = Checkpoint(
                variables.kept_weights(arrays),
                {key: row.get(key) for key in ("step", "epoch", "validation")},
            )
            self._writer.submit(checkpoint.save, self._run.best, best)
        progress.sums, progress.seconds = {}, 0.0
        self._writer.submit(self._run.write_metrics, list(progress.rows))
        self._events.write(row)
        self._callbacks.epoch_ended(row)

    def _save(self) -> None:
        progress = self._training.progress
        progress.learning_rate = self._training.rate.state()
        folder = self._run.checkpoints / str(progress.step)
        self._writer.wait()  # at most one checkpoint interval can be lost
        with self._writer.counted():
            arrays = self._learner.state.arrays(progress.step)
            saved = Checkpoint(arrays, asdict(progress))
        self._writer.submit(checkpoint.save, folder, saved)
        self._writer.submit(checkpoint.keep_last, folder.parent, KEPT_CHECKPOINTS)

    def _score(self, validation: dict[str, float]) -> float:
        """Returns the score that decides whether an epoch is the best; higher is better."""
        early = self._recipe.train.early_stopping
        if early and early.metric == "loss":
            return -validation["loss"]
        return validation[self._learner.task.score.key]
