"""What learns as a recipe says: data, network, optimizer and the compiled steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.backend.settings import Settings
from cnnbench.compression import Record, build_stage
from cnnbench.data.examples import Dataset
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream
from cnnbench.data.preprocess import preprocess
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import training_splits
from cnnbench.errors import DivergedError, UsageError
from cnnbench.models import build
from cnnbench.models.build import without_auxiliary
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.sections import total_steps
from cnnbench.registry.kinds import MODELS, SCHEDULES, input_shape
from cnnbench.runs import network
from cnnbench.runs import variables as checkpoint
from cnnbench.runs.facts import DataFacts
from cnnbench.runs.run import Run
from cnnbench.training import averages as averages_module
from cnnbench.training import compression, start, steps
from cnnbench.training.optimizer import build_optimizer

# What a network's first weights are computed from, where they come from images.
INITIAL_IMAGES = 5000


class Learner:
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
        sizes = recipe.train.image_sizes
        if sizes and sizes[-1].until * self.stream.steps_per_epoch >= self.total_steps:
            raise UsageError(
                f"train.image_sizes until epoch {sizes[-1].until}",
                allowed=f"less than the {self.total_steps} steps that training takes, so that the "
                "network sees images of its size",
            )
        for key, needed in (
            ("train.early_stopping", recipe.train.early_stopping is not None),
            ("schedule.name", SCHEDULES.get(recipe.schedule.name).facts.get("needs_validation")),
        ):
            if needed and self.validation is None:
                raise UsageError(
                    f"{key} needs a validation split", allowed="set data.validation above 0"
                )
        session.prepare(seed=recipe.seed, deterministic=recipe.train.deterministic)
        self.strategy = session.strategy(recipe.train.strategy)
        self.replicas: int = self.strategy.num_replicas_in_sync
        if recipe.data.batch_size % (self.replicas * recipe.train.accumulate):
            parts = f", times train.accumulate of {recipe.train.accumulate}"
            raise UsageError(
                f"data.batch_size of {recipe.data.batch_size}",
                allowed=f"a multiple of the {self.replicas} replicas"
                + parts * (recipe.train.accumulate > 1),
            )
        self.preprocess = preprocess(self.data, recipe.data)
        with session.precision(recipe.train.precision), self.strategy.scope():
            first = start.Beginning({}, architecture or ())
            if architecture is None:
                first = start.begin(recipe, self.data, self.shape, self._others.get("init"))
            self._first, self.architecture = first.weights, first.architecture
            teacher = self._others.get("teacher")
            self._lesson = compression.lesson(recipe, self.data, self.shape, teacher)
        # Names and random weights as if nothing had been built before.
        session.prepare(seed=recipe.seed, deterministic=recipe.train.deterministic)
        with session.precision(recipe.train.precision), self.strategy.scope():
            self.model = self._built()
            self.network = without_auxiliary(self.model)
            build.freeze(self.network, recipe.model)
            weights_to_train = self.model.trainable_variables
            self.optimizer = build_optimizer(recipe.optimizer, recipe.train, weights_to_train)
            self.slow = (
                averages_module.slow_weights(weights_to_train) if recipe.train.lookahead else []
            )
            self.averaged = None
            averages = None
            if recipe.train.ema is not None:
                self.averaged = self._built()
                averages = without_auxiliary(self.averaged)
                build.freeze(averages, recipe.model)
            self.masking = compression.masking(
                recipe, self.architecture, self.network, averages, self.total_steps
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
            masking=self.masking,
            lesson=self._lesson,
            xla=settings.xla,
        )
        self.train_steps = compiled()
        # Of those that come before, the step that ends them and what they run.
        self.on_small_images = [
            (each.until * self.stream.steps_per_epoch, compiled(size=each.size))
            for each in recipe.train.image_sizes
        ]
        network = self.network if averages is None else averages
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
            from_images(self.network, self._some_images(INITIAL_IMAGES))
        if self.recipe.compress:
            build_stage(self.recipe.compress[-1]).initialize(self.network, self._some_images)
        if self.masking is not None:
            self.masking.initialize()
        if self.averaged is not None:
            self.averaged.set_weights(self.model.get_weights())

    def _some_images(self, count: int) -> np.ndarray:
        """Returns normalised training images, (count, height, width, channels) float32.

        Fewer where there are not so many.
        """
        some = self.examples.take(slice(count))
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

    def batches(self, step: int) -> Iterator[Any]:
        """Returns an iterator over the batches of a step and of those that follow."""
        dataset = self.stream.dataset(step)
        return iter(self.strategy.experimental_distribute_dataset(dataset))

    def run_steps(
        self, iterator: Iterator[Any], step: int, rates: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Trains some steps in one call.

        Args:
            iterator: from `batches`.
            step: the first of them.
            rates: the learning rates, (train.steps_per_call,) float32.
            count: how many of them are run.

        Returns:
            Of each step: the sum of the losses, how many were right, the sum of the weights.

        Raises:
            DataError: an image could not be read.
        """
        sparsities = np.full_like(rates, np.nan)
        if self.masking is not None:
            following = range(step, step + count)
            sparsities[:count] = [self.masking.sparsity_after(each) for each in following]
        numbers = step + 1 + np.arange(len(rates))
        ends = (numbers % self.stream.steps_per_epoch == 0) | (numbers == self.total_steps)
        small = (steps for end, steps in self.on_small_images if step < end)
        train_steps = next(small, self.train_steps)
        try:
            found = train_steps(
                iterator,
                tf.constant(rates),
                tf.constant(sparsities),
                tf.constant(ends),
                tf.constant(count),
            )
        except tf.errors.OpError:
            if self.stream.failure is not None:
                raise self.stream.failure from None
            raise
        losses, right, sums = (values.numpy() for values in found)
        return losses, right, sums

    def is_settled(self, step: int) -> bool:
        """Tells whether after so many steps no more weights are going to be pruned."""
        return self.masking is None or self.masking.is_settled(step)

    def validate(self) -> dict[str, float]:
        """Returns the mean loss and the top-1 of the validation split."""
        loss = right = 0.0
        assert self.validation is not None
        data = self.recipe.data
        batches = evaluation_batches(self.validation, data, self.shape[:2], data.batch_size)
        for images, labels, count in batches:
            losses, hits = self._evaluate_batch(images, labels)
            loss += float(losses.numpy()[:count].sum(dtype=np.float64))
            right += int(hits.numpy()[:count].sum())
        return {"loss": loss / len(self.validation), "top1": right / len(self.validation)}

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Returns every variable of the model, its generators and the optimizer, by its place.

        Raises:
            DivergedError: one of them is not finite.
        """
        # Copies, for they are written while training goes on.
        arrays = {key: np.array(each.numpy()) for key, each in self.variables().items()}
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise diverged(f"{key} has a value that is not finite at step {step}")
        return arrays

    def variables(self) -> dict[str, Any]:
        """Returns what a checkpoint holds, by its place in it."""
        model = checkpoint.variables_by_name("model", self.model.variables)
        named = model | checkpoint.variables_by_name("optimizer", self.optimizer.variables)
        named |= checkpoint.variables_by_name("slow", self.slow)
        if self.masking is not None:
            named |= checkpoint.variables_by_name("mask", self.masking.variables)
        if self.averaged is not None:
            # Under the model's names: Keras calls a second layer without a name otherwise.
            averages = (name.replace("model/", "average/", 1) for name in model)
            named |= dict(zip(averages, self.averaged.variables, strict=True))
        return named


def diverged(what: str) -> DivergedError:
    """Returns the error of a training that went to infinity, with what may help."""
    return DivergedError(
        what, allowed="a lower optimizer.lr or a longer schedule.warmup_epochs may help"
    )
