"""Jobs of the benchmark processes: training steps, inference, reading, matrix products.

Each builds something and returns a function that runs one round of the measurement.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

import numpy as np

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.backend.settings import Settings
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import training_splits
from cnnbench.models.build import build_model
from cnnbench.models.complexity import count_macs
from cnnbench.recipe.load import parse_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.stand_in import shortened
from cnnbench.registry.kinds import OPTIMIZERS, input_shape
from cnnbench.system.memory import keep_freed_memory
from cnnbench.system.processes import Round

TIMEOUT_S = 600.0
MATRIX_SIDE = 2048
ROUNDS, ROUND_SECONDS = 5, 1.0  # rounds per measurement and their approximate length


def available_memory_mb() -> float:
    """Returns the memory available to new processes without swapping, in MB of 2**20 bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**2


def training_steps(dumped: str, settings: Settings) -> Round:
    """Builds the training of a dumped recipe on synthetic images.

    A round takes about a second, but at least one step. Reading and augmenting images is excluded.

    Returns:
        A round, which returns the seconds per step.
    """
    from cnnbench.training.learner import Learner

    keep_freed_memory()  # as the command line does before it trains
    recipe = shortened(parse_recipe(dumped))
    learner = Learner(recipe, Access(download=False), settings)
    batch = next(iter(learner.stream.dataset(0)))
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    rates = zeros = tf.zeros(recipe.train.steps_per_call)
    ends = tf.zeros(recipe.train.steps_per_call, tf.bool)

    def steps(count: int) -> float:
        start = time.perf_counter()
        for done in range(0, count, recipe.train.steps_per_call):
            steps_now = min(recipe.train.steps_per_call, count - done)
            learner.train_steps(iterator, rates, zeros, ends, tf.constant(steps_now))[0].numpy()
        return time.perf_counter() - start

    steps(1)
    count = max(1, round(ROUND_SECONDS / max(steps(1), 1e-3)))
    return lambda: steps(count) / count


def limited_training(dumped: str, settings: Settings) -> Round:
    """Like `training_steps`, but raises an error instead of being OOM-killed."""
    limit = int(available_memory_mb() * 1024**2)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return training_steps(dumped, settings)


def stock_training(dumped: str) -> Round:
    """Builds the same network from Keras's own layers, for `compile` and `fit`.

    It is compiled with the loss and the recipe's optimizer, and fits on batches already in memory.

    Returns:
        A round, which returns the seconds per step.
    """
    from cnnbench.models.layers.fast import plain

    recipe = shortened(parse_recipe(dumped))
    shape, batch = stand_in_shape(recipe), recipe.data.batch_size
    with session.precision(recipe.train.precision):
        model = plain(build_model(recipe.model, shape, _head_size(recipe)))
    loss, metrics = recipe.task.keras_loss()
    model.compile(optimizer=OPTIMIZERS.build(recipe.optimizer), loss=loss, metrics=metrics)
    images = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    examples = open_dataset(recipe.data, Access(download=False)).split("train")
    _, targets, _ = next(evaluation_batches(examples, recipe.data, shape[:2], batch))
    batches = tf.data.Dataset.from_tensors((images, targets)).repeat()

    def steps(count: int) -> float:
        start = time.perf_counter()
        model.fit(batches, steps_per_epoch=count, verbose=0)
        return time.perf_counter() - start

    steps(1)
    # Enough steps to make the overhead of a call to `fit` negligible.
    count = max(1, round(2 * ROUND_SECONDS / max(steps(1), 1e-3)))
    return lambda: steps(count) / count


def inference(dumped: str, batch: int) -> Round:
    """Builds a network in float32; a round returns the seconds of one call."""
    recipe = shortened(parse_recipe(dumped))
    shape = stand_in_shape(recipe)
    model = build_model(recipe.model, shape, _head_size(recipe))
    images = tf.constant(np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32))
    predict = tf.function(lambda x: model(x, training=False), autograph=False)

    def call() -> float:
        start = time.perf_counter()
        predict(images).numpy()
        return time.perf_counter() - start

    for _ in range(3):
        call()
    return call


def counting(dumped: str) -> Round:
    """Builds a network; a round returns its multiply-accumulates per image."""
    recipe = shortened(parse_recipe(dumped))
    macs = count_macs(build_model(recipe.model, stand_in_shape(recipe), _head_size(recipe)))
    return lambda: float(macs)


def reading(dumped: str, access: Access) -> Round:
    """Opens a recipe's training images; a round returns the seconds to read a batch."""
    recipe = parse_recipe(dumped)
    dataset = open_dataset(recipe.data, access)
    examples = training_splits(dataset, recipe.data).train
    size = input_shape(recipe.data, dataset.shape)[:2]
    stream = TrainingStream(
        examples, recipe.data, size, recipe.augment, recipe.seed, recipe.task.mixing(dataset)
    )
    batches = iter(stream.dataset(0))

    def read(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - start

    read(10)  # skips the batches that were prefetched
    count = max(2, round(ROUND_SECONDS / max(read(5) / 5, 1e-4)))
    return lambda: read(count) / count


def matrix_products() -> Round:
    """Returns a round, which returns the seconds of a product of two float32 matrices."""
    a = tf.random.stateless_normal((MATRIX_SIDE, MATRIX_SIDE), (0, 1))

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            product = tf.matmul(a, a)
        product.numpy()
        return (time.perf_counter() - start) / count

    products(2)
    return lambda: products(10)


def _head_size(recipe: Recipe) -> int:
    size = recipe.task.expected_head_size(recipe.data, recipe.model)
    assert size is not None  # falls back to the model's native head
    return size


def stand_in_shape(recipe: Recipe) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the synthetic images that stand in for the data."""
    data = shortened(recipe).data
    height, width, channels = data.options()["shape"]
    return height, width, channels
