"""Everything that training a recipe needs: data, state and compiled steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.backend.settings import Settings
from cnnbench.compression import Record, build_stage
from cnnbench.data.images import BadImageError
from cnnbench.data.inspection import Inspection
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream
from cnnbench.data.preprocess import preprocess
from cnnbench.data.reader import evaluation_batches, first_images
from cnnbench.data.splits import to_inspect, training_splits
from cnnbench.models.build import freeze, without_auxiliary
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.sections import total_steps
from cnnbench.registry.kinds import MODELS, input_shape
from cnnbench.runs import network
from cnnbench.runs.facts import DataFacts
from cnnbench.runs.run import Run
from cnnbench.training import averages, checks, compression, start, steps
from cnnbench.training.optimizer import build_optimizer
from cnnbench.training.state import State

# Training images for models that compute initial weights from images.
INITIAL_IMAGES = 5000


class Learner:
    """Opens the data, builds the network and compiles the steps of a training.

    Args:
        recipe: the recipe; if it has compression stages, the last one is trained.
        access: where data sets are stored.
        settings: the TensorFlow settings in effect.
        others: the run to start from, as "init", and the teacher's, as "teacher".
        architecture: the records of the compression stages, if they were applied before; None:
            apply the last stage now.

    Raises:
        RecipeError: the recipe does not fit the data, the devices or the runs that it names.
        DataError: the data set is missing or an image is damaged.
    """

    def __init__(
        self,
        recipe: Recipe,
        access: Access,
        settings: Settings,
        others: Mapping[str, Run] | None = None,
        architecture: Sequence[Record] | None = None,
    ):
        self.recipe, self._access, self._others = recipe.of_last_stage(), access, others or {}
        self.task = recipe.task
        with self.recipe.located():
            self._open_data()
            self._prepare_session()
            self.strategy = session.strategy(recipe.train.strategy)
            self.replicas: int = self.strategy.num_replicas_in_sync
            checks.check_replicas(self.recipe, self.replicas)
            with session.precision(recipe.train.precision), self.strategy.scope():
                self._load_start(architecture)
            # Resets layer names and seeds, so that they do not depend on what was built before.
            self._prepare_session()
            with session.precision(recipe.train.precision), self.strategy.scope():
                self.state = self._build_state()
            self._compile(settings)

    def _open_data(self) -> None:
        recipe = self.recipe
        self.data = open_dataset(recipe.data, self._access)
        is_first_stage = len(recipe.compress) < 2
        # Told once. Looks at the pixels first: what follows can take long.
        self.notes = [*self.data.notes, *self.data.survey.note()] if is_first_stage else []
        self.shape: tuple[int, int, int] = input_shape(recipe.data, self.data.shape)
        splits = training_splits(self.data, recipe.data)
        self.examples, self.validation = splits.train, splits.validation
        self.skipped = splits.skipped + splits.skipped_in_validation
        self.inspection = Inspection(to_inspect(self.data, recipe.data, splits))
        self.head_size = self.task.head_size(self.data.classes)
        self.stream = TrainingStream(
            self.examples,
            recipe.data,
            self.shape[:2],
            recipe.augment,
            recipe.seed,
            self.task.mixing(self.data),
        )
        per_epoch = self.stream.steps_per_epoch
        self.total_steps = total_steps(recipe.train, per_epoch, recipe.data.batch_size)
        checks.check_durations(recipe, per_epoch, self.total_steps)
        checks.check_validation(recipe, self.validation is not None)
        self.preprocess = preprocess(self.data, recipe.data)

    def _prepare_session(self) -> None:
        session.prepare(seed=self.recipe.seed, deterministic=self.recipe.train.deterministic)

    def _load_start(self, architecture: Sequence[Record] | None) -> None:
        """Loads the network that training starts from, and the teacher."""
        recipe = self.recipe
        if architecture is None:
            first = start.starting_point(recipe, self.data, self.shape, self._others.get("init"))
        else:
            first = start.StartingPoint({}, architecture)
        self._initial_weights, self.architecture = first.weights, first.architecture
        teacher = self._others.get("teacher")
        self._lesson = compression.lesson(recipe, self.data, self.shape, teacher)

    def _build_state(self) -> State:
        recipe = self.recipe
        model = self._build_model()
        trained = without_auxiliary(model)
        freeze(trained, recipe.model)
        variables = model.trainable_variables
        optimizer = build_optimizer(recipe.optimizer, recipe.train, variables)
        slow = averages.slow_weights(variables) if recipe.train.lookahead else []
        averaged = averaged_network = None
        if recipe.train.ema is not None:
            averaged = self._build_model()
            averaged_network = without_auxiliary(averaged)
            freeze(averaged_network, recipe.model)
        masking = compression.masking(
            recipe, self.architecture, trained, averaged_network, self.total_steps
        )
        return State(model, trained, optimizer, averaged, averaged_network, slow, masking)

    def _build_model(self) -> Any:
        """Builds the model to train, with random weights."""
        model = network.build(self.recipe.model, self.shape, self.head_size, self.architecture)
        return self._lesson.with_hints(model) if self._lesson else model

    def _compile(self, settings: Settings) -> None:
        recipe = self.recipe
        compiled = partial(
            steps.training_steps,
            recipe,
            self.state,
            self.strategy,
            self.preprocess,
            lesson=self._lesson,
            xla=settings.xla,
        )
        self.train_steps = compiled()
        # The steps on smaller images, which come first, each with the step that it ends before.
        self.on_small_images = [
            (each.until * self.stream.steps_per_epoch, compiled(size=each.size))
            for each in recipe.train.image_sizes
        ]
        self._evaluate_batch = steps.evaluation_step(recipe, self.state.validated, self.preprocess)

    def initialize(self) -> None:
        """Sets the initial weights that are not random, and initializes masks and averages."""
        state, named = self.state, {v.path: v for v in self.state.model.weights}
        for path, value in self._initial_weights.items():
            named[path].assign(value)
        from_images = MODELS.get(self.recipe.model.name).facts.get("from_images")
        if from_images and not self._initial_weights:
            from_images(state.network, self._training_images(INITIAL_IMAGES))
        if self.recipe.compress:
            build_stage(self.recipe.compress[-1]).initialize(state.network, self._training_images)
        if state.masking is not None:
            state.masking.initialize()
        if state.averaged is not None:
            state.averaged.set_weights(state.model.get_weights())

    def _training_images(self, count: int) -> np.ndarray:
        """Returns the first training images, at most `count` of them, normalized.

        Returns:
            (images, height, width, channels) float32.
        """
        images = first_images(self.examples, self.recipe.data, self.shape[:2], count)
        return self.preprocess(images).numpy()

    def inspect(self) -> list[str]:
        """Decodes images for some seconds; see `Inspection.begin`.

        Raises:
            DataError: some cannot be decoded.
            RecipeError: `data.value_range` must be set for some.
        """
        with self.recipe.located():
            return self.inspection.begin()

    def about_data(self) -> DataFacts:
        """Returns the facts of the data, for environment.json."""
        data_dir = self._access.data_dir
        return DataFacts.of(
            self.data,
            self.shape,
            self.preprocess,
            train_examples=len(self.examples),
            validation_examples=len(self.validation) if self.validation else 0,
            skipped_images=list(self.skipped),
            data_dir=str(data_dir.absolute()) if data_dir else None,
        )

    @contextmanager
    def batches(self, step: int) -> Iterator[Iterator[Any]]:
        """Opens an iterator over the batches, starting with that of `step`."""
        dataset = self.stream.dataset(step)
        try:
            yield iter(self.strategy.experimental_distribute_dataset(dataset))
        finally:
            self.stream.close()

    def run_steps(
        self, iterator: Iterator[Any], step: int, rates: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs several training steps in one call into TensorFlow.

        Args:
            iterator: from `batches`.
            step: the first step.
            rates: the learning rates, (train.steps_per_call,) float32.
            count: number of steps to run, at most train.steps_per_call.

        Returns:
            For each step, (steps,) float32: the sum of losses, the sum of hits, the sum of weights.

        Raises:
            DataError: an image could not be read.
            RecipeError: `data.value_range` must be set for an image.
        """
        masking = self.state.masking
        sparsities = np.full_like(rates, np.nan)
        if masking is not None:
            following = range(step, step + count)
            sparsities[:count] = [masking.sparsity_after(each) for each in following]
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
            failure = self.stream.failure
            if failure is None:
                raise
            if isinstance(failure, BadImageError):
                raise self.inspection.failure(failure) or failure from None
            with self.recipe.located():
                raise failure from None
        losses, hits, sums = (values.numpy() for values in found)
        return losses, hits, sums

    def is_settled(self, step: int) -> bool:
        """Returns whether pruning is complete after a step."""
        masking = self.state.masking
        return masking is None or masking.is_settled(step)

    def validate(self) -> dict[str, float]:
        """Returns the mean loss and the score of the validation split."""
        loss = score = 0.0
        assert self.validation is not None
        data, examples = self.recipe.data, len(self.validation)
        batches = evaluation_batches(self.validation, data, self.shape[:2], data.batch_size)
        for images, targets, count in batches:
            losses, hits = (each.numpy()[:count] for each in self._evaluate_batch(images, targets))
            loss += float(losses.sum(dtype=np.float64))
            score += float(hits.sum(dtype=np.float64))
        return {"loss": loss / examples, self.task.score.key: score / examples}
