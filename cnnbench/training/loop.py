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

    def judge(self, score: float, early: EarlyStopping | None, *, is_settled: bool = True) -> bool:
        """Tells whether an epoch is the best so far, and counts those without an improvement.

        Args:
            score: of the validation split; higher is better.
            early: when the recipe stops; None: never.
            is_settled: whether no more weights are pruned; until then an epoch would be the best
                because it has more of them.
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
        """Tells whether so many epochs brought nothing that training ends."""
        return early is not None and self.epochs_without >= early.patience


class Loop:
    """The epochs of a training, from its start or resumption to its end.

    Args:
        learner: what trains.
        run: where it is kept.
        rate: the learning rate of each step.
        callbacks: what training reports to.
        writer: that writes while training goes on.
        interrupted: whether a signal asked to end.
        progress: where training begins.
    """

    def __init__(
        self,
        learner: Learner,
        run: Run,
        rate: LearningRate,
        callbacks: Callbacks,
        writer: writer_module.Writer,
        interrupted: Callable[[], bool],
        progress: Progress,
    ):
        self._learner, self._recipe, self._run, self._rate = learner, learner.recipe, run, rate
        self._callbacks, self._writer, self._interrupted = callbacks, writer, interrupted
        self._events = Events(run.path / "tensorboard")
        self.progress = progress

    def train(self) -> None:
        """Trains to the end, and goes back where the recipe wants that."""
        if self._recipe.train.on_nan == "rollback" and self.progress.step == 0:
            self._save()
        while True:
            try:
                self._train()
                return
            except DivergedError as error:
                self._roll_back(error)

    def _train(self) -> None:
        """Trains from where the progress is to the end."""
        learner, progress = self._learner, self.progress
        due = writer_module.schedule(self._recipe.train.checkpoint_every, progress.step)
        iterator = learner.batches(progress.step)
        per_epoch, last = learner.stream.steps_per_epoch, learner.total_steps
        early = self._recipe.train.early_stopping
        while progress.step < last and not progress.is_stopped(early):
            epoch_end = min((progress.step // per_epoch + 1) * per_epoch, last)
            self._call(iterator, epoch_end)
            if progress.step == epoch_end:
                self._end_epoch()
                self._save()
            elif self._interrupted() or due(progress.step):
                self._save()
            self._writer.check()
            if self._interrupted() and progress.step < last:
                self._writer.wait()
                raise InterruptedRun(
                    f"interrupted and saved at step {progress.step} of {last}",
                    where=str(self._run.path),
                    allowed=f"continue with --resume --run-dir {self._run.path}",
                )

    def _roll_back(self, error: DivergedError) -> None:
        """Goes back to the last checkpoint, from where training goes on with a lower rate.

        Raises:
            DivergedError: the recipe does not want that, or it was done often enough.
        """
        self._writer.wait()
        saved, _ = checkpoint.newest(self._run.checkpoints)
        if saved is not None:
            step = saved.state["step"]
            error = DivergedError(
                error.what,
                where=str(self._run.path),
                allowed=f"{error.allowed}; the checkpoint of step {step} is intact",
            )
        rollback, done = self._recipe.train.on_nan == "rollback", self.progress.rollbacks
        if saved is None or not rollback or len(done) == ROLLBACKS:
            raise error from None
        self.progress = _restored(self._learner, self._rate, saved, self._run)
        self.progress.rollbacks = [*done, {"to_step": step, "reason": error.what}]
        factor = ROLLBACK_FACTOR ** len(self.progress.rollbacks)
        self._run.write_metrics(self.progress.rows)
        self._callbacks.noted(
            f"{error.what}: back to step {step}, with the learning rate times {factor:g}"
        )

    def _call(self, iterator: Iterator[Any], epoch_end: int) -> None:
        """Runs some steps, and not beyond the end of the epoch."""
        learner, progress = self._learner, self.progress
        start = time.perf_counter()
        per_call = self._recipe.train.steps_per_call
        count = min(per_call, epoch_end - progress.step)
        # Always of one length, so that the steps are traced once.
        rates = np.zeros(per_call, np.float32)
        rates[:count] = [self._rate_of(progress.step + i) for i in range(count)]
        losses, hits, sums = learner.run_steps(iterator, progress.step, rates, count)
        for what, values in (("the loss", losses), ("a weight", sums)):
            finite = np.isfinite(values)
            if not finite.all():
                step = progress.step + int(np.argmin(finite))
                raise diverged(f"{what} is {values[~finite][0]} at step {step}")
        images = count * self._recipe.data.batch_size
        progress.step += count
        progress.seconds += time.perf_counter() - start
        # One by one, so that the sum does not depend on where a call began.
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
        """Validates, writes the epoch's row, and keeps the weights if they are the best.

        Raises:
            DivergedError: a weight or the validation loss is not finite; nothing is written then.
        """
        learner, progress = self._learner, self.progress
        with self._writer.counted():
            arrays = learner.state.arrays(progress.step)
        seen = progress.sums["images"]
        row: dict[str, Any] = {
            "epoch": len(progress.rows) + 1,
            "step": progress.step,
            "lr": self._rate_of(progress.step - 1),
            "train": {key: progress.sums[key] / seen for key in ("loss", learner.task.score.key)},
            "throughput_images_per_s": round(seen / progress.seconds, 1),
            "seconds": round(progress.seconds, 2),
        }
        is_best = True  # without validation, the last weights are the best
        if learner.validation is not None:
            row["validation"] = learner.validate()
            if not math.isfinite(row["validation"]["loss"]):
                raise diverged(f"the validation loss is not finite at step {progress.step}")
            self._rate.observe(row["validation"]["loss"], progress.step)
            is_best = progress.judge(
                self._judged(row["validation"]),
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
        self.progress.learning_rate = self._rate.state()
        folder = self._run.checkpoints / str(self.progress.step)
        self._writer.wait()  # no more than one interval is ever lost
        with self._writer.counted():
            arrays = self._learner.state.arrays(self.progress.step)
            saved = Checkpoint(arrays, asdict(self.progress))
        self._writer.submit(checkpoint.save, folder, saved)
        self._writer.submit(checkpoint.keep_last, folder.parent, KEPT_CHECKPOINTS)

    def _judged(self, validation: dict[str, float]) -> float:
        """Returns what decides whether an epoch is the best."""
        early = self._recipe.train.early_stopping
        if early and early.metric == "loss":
            return -validation["loss"]
        return validation[self._learner.task.score.key]

    def _rate_of(self, step: int) -> float:
        """Returns the learning rate of a step."""
        return self._rate.at(step) * ROLLBACK_FACTOR ** len(self.progress.rollbacks)


def _restored(learner: Learner, rate: LearningRate, saved: Checkpoint, run: Run) -> Progress:
    """Takes over a checkpoint."""
    variables.assign(learner.state.variables(), saved.arrays, run.checkpoints)
    progress = Progress(**saved.state)
    rate.restore(progress.learning_rate)
    return progress
