"""Benchmarks: how fast a recipe trains and its network answers here, and what holds it back.

Everything is measured in processes of their own, which take turns where there are several; the
median of the rounds counts, and the spread of them is told.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cnnbench import beginning, runtime, tuning
from cnnbench.data.datasets import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream, training_splits
from cnnbench.errors import DataError, UsageError
from cnnbench.lazy import keras, tf
from cnnbench.models import build_model
from cnnbench.models.complexity import count_macs
from cnnbench.parts import OPTIMIZERS, input_shape, kind_of
from cnnbench.provenance import machine, versions
from cnnbench.recipe import Recipe, parse_recipe
from cnnbench.runtime import Settings
from cnnbench.workers import Round, Worker, WorkerError, alternate

Mode = Literal["train", "infer", "data"]
ROUNDS = 5
TIMEOUT_S = 600.0
MATRIX_SIDE = 2048
INFERENCE_BATCHES = (1, 8, 32, 128)
LATENCY_CALLS = 50
PROFILED_STEPS = 20
DEAREST = 10


def bench(
    recipes: Sequence[Recipe],
    mode: Mode = "train",
    *,
    rounds: int = ROUNDS,
    tune: bool = True,
    compare_stock: bool = False,
    access: Access | None = None,
) -> dict[str, Any]:
    """Measures recipes, one after the other.

    Args:
        recipes: what to measure. Training and inference run on made-up images of their size.
        mode: "train": training steps; "infer": the network's answers, by batch size; "data":
            reading and augmenting the training images alone, and how long training waits for it.
        rounds: of each measurement.
        tune: whether the fastest settings are looked for first, where they are not known.
        compare_stock: whether the same network in Keras's own `fit` takes turns with the training.
        access: where data sets lie, for "data".

    Returns:
        "machine", "versions", "peak_gflops_per_s" of a matrix product, and "rows", a row each
        measurement, with throughput and its spread in images/s, MB of 2**20 bytes, and shares of 1.

    Raises:
        UsageError: a recipe cannot be measured, as when its batch does not fit in memory.
        DataError: the data set is not there.
    """
    with Worker(matrix_products) as worker:
        worker.ready(TIMEOUT_S)
        seconds = min(worker.round(TIMEOUT_S) for _ in range(rounds))
    peak = 2 * MATRIX_SIDE**3 / seconds
    rows: list[dict[str, Any]] = []
    for recipe in recipes:
        if mode == "train":
            rows += _bench_training(recipe, peak, rounds, tune, compare_stock)
        elif mode == "infer":
            rows += _bench_inference(recipe, peak, rounds)
        else:
            rows.append(_bench_data(recipe, rounds, access or Access()))
    return {
        "machine": machine(),
        "versions": versions(),
        "peak_gflops_per_s": round(peak / 1e9, 1),
        "rows": rows,
    }


def _bench_training(
    recipe: Recipe, peak: float, rounds: int, tune: bool, compare_stock: bool
) -> list[dict[str, Any]]:
    choice = tuning.choose(recipe, tune=tune, seconds=float("inf"))
    settings, dumped = choice.settings, recipe.dump()
    with contextlib.ExitStack() as stack:
        arguments = (limited_training, dumped, settings)
        ours = stack.enter_context(Worker(*arguments, environment=settings.environment()))
        try:
            first_step = ours.ready(TIMEOUT_S)
            workers = [ours]
            if compare_stock:
                workers.append(stack.enter_context(Worker(stock_training, dumped)))
                workers[1].ready(TIMEOUT_S)
            seconds = alternate(workers, rounds, TIMEOUT_S)
            memory = ours.peak_memory_mb()
        except WorkerError as error:
            raise UsageError(
                f"a batch of {recipe.data.batch_size} cannot be trained: {error}",
                where=recipe.name,
                allowed=f"about {largest_batch(recipe, settings)} images fit in memory",
            ) from None
    batch = recipe.data.batch_size
    row = _row(recipe, "train", batch, seconds[0], 3 * _macs(recipe), peak) | {
        "runtime": tuning.name(settings),
        "seconds_to_first_step": round(first_step, 2),
        "peak_memory_mb": round(memory, 1),
        "largest_batch": largest_batch(recipe, settings),
    }
    if compare_stock:
        stock = batch / statistics.median(seconds[1])
        ratios = [theirs / own for own, theirs in zip(*seconds, strict=True)]
        row |= {
            "stock_throughput_images_per_s": round(stock, 1),
            "ratio_to_stock": round(statistics.median(ratios), 3),
            "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return [row]


def _bench_inference(recipe: Recipe, peak: float, rounds: int) -> list[dict[str, Any]]:
    rows, macs = [], _macs(recipe)
    for batch in INFERENCE_BATCHES:
        with Worker(inference, recipe.dump(), batch) as worker:
            worker.ready(TIMEOUT_S)
            calls = LATENCY_CALLS if batch == 1 else max(rounds, 10)
            seconds = [worker.round(TIMEOUT_S) for _ in range(calls)]
            p50, p95 = np.percentile(seconds, (50, 95)) * 1000
            rows.append(
                _row(recipe, "infer", batch, seconds, macs, peak)
                | {
                    "latency_ms": {"p50": round(float(p50), 3), "p95": round(float(p95), 3)},
                    "peak_memory_mb": round(worker.peak_memory_mb(), 1),
                }
            )
    return rows


def _bench_data(recipe: Recipe, rounds: int, access: Access) -> dict[str, Any]:
    """Measures the pipeline whole, without any augmentation, and without each one."""
    crops = [spec for spec in recipe.augment if kind_of(spec) == "crop"]
    kept = {"all": recipe.augment, "none": crops}
    kept |= {
        f"without {spec.name}": [*recipe.augment[:i], *recipe.augment[i + 1 :]]
        for i, spec in enumerate(recipe.augment)
        if spec not in crops
    }
    variants = {key: recipe.model_copy(update={"augment": list(a)}) for key, a in kept.items()}
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(reading, variant.dump(), access))
            for variant in variants.values()
        ]
        try:
            for worker in workers:
                worker.ready(TIMEOUT_S)
            measured = alternate(workers, rounds, TIMEOUT_S)
        except WorkerError as error:
            raise DataError(str(error), where=recipe.name) from None
    median = {key: statistics.median(s) for key, s in zip(variants, measured, strict=True)}
    batch = recipe.data.batch_size
    row = _row(recipe, "data", batch, measured[0], 0, 1.0)
    del row["gflops_per_s"], row["share_of_peak"]
    with tempfile.TemporaryDirectory() as folder:
        training = profile(recipe, Path(folder), access)
    return row | {
        "training_images_per_s": round(training["steps"] * batch / training["seconds"], 1),
        "waiting_for_data": training["waiting_for_data"],
        "without_augmentation_images_per_s": round(batch / median["none"], 1),
        "augmentation_us_per_image": {
            key.removeprefix("without "): round((median["all"] - value) / batch * 1e6, 2)
            for key, value in median.items()
            if key.startswith("without ")
        },
    }


def _row(
    recipe: Recipe, mode: str, batch: int, seconds: Sequence[float], macs: float, peak: float
) -> dict[str, Any]:
    rates = sorted(batch / s for s in seconds)
    rate = statistics.median(rates)
    return {
        "recipe": recipe.name,
        "model": recipe.model.name,
        "mode": mode,
        "batch_size": batch,
        "input": list(_shape(recipe)),
        "throughput_images_per_s": round(rate, 1),
        "spread": [round(rates[0], 1), round(rates[-1], 1)],
        "gflops_per_s": round(2 * macs * rate / 1e9, 2),
        "share_of_peak": round(2 * macs * rate / peak, 4),
    }


def largest_batch(recipe: Recipe, settings: Settings) -> int:
    """Returns about how many images a training step can take in the memory that is free now.

    It is reckoned from the peaks of memory of two small batches, in processes of their own. Of a
    batch that goes through the network in parts, one part at a time takes memory.
    """
    parts, peaks = recipe.train.accumulate, {}
    for batch in (16, 48):
        data = recipe.data.model_copy(update={"batch_size": batch * parts})
        dumped = recipe.model_copy(update={"data": data}).dump()
        with Worker(
            tuning.training_steps, dumped, settings, environment=settings.environment()
        ) as worker:
            worker.ready(TIMEOUT_S)
            peaks[batch] = worker.peak_memory_mb()
    an_image = max((peaks[48] - peaks[16]) / 32, 1e-3)
    return parts * max(1, int(16 + (available_memory_mb() - peaks[16]) / an_image))


def available_memory_mb() -> float:
    """Returns the memory that new processes may use without swapping, in MB of 2**20 bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**2


# What runs in the workers.


def limited_training(dumped: str, settings: Settings) -> Round:
    """Builds a training as tuning does, with an error in place of the system's killing hand."""
    limit = int(available_memory_mb() * 1024**2)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return tuning.training_steps(dumped, settings)


def stock_training(dumped: str) -> Round:
    """Builds the same network of Keras's own layers; a round returns the seconds of a step.

    Everything else is what Keras does by itself: `compile` with the loss and the recipe's
    optimizer, and `fit` on batches that are there already.
    """
    from cnnbench.models.fast_layers import plain

    recipe = tuning.shortened(parse_recipe(dumped))
    shape, batch = _shape(recipe), recipe.data.batch_size
    with runtime.precision(recipe.train.precision):
        model = plain(build_model(recipe.model, shape, recipe.data.classes or 10))
    model.compile(
        optimizer=OPTIMIZERS.build(recipe.optimizer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    images = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    labels = np.arange(batch) % (recipe.data.classes or 10)
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()

    def steps(count: int) -> float:
        start = time.perf_counter()
        model.fit(batches, steps_per_epoch=count, verbose=0)
        return time.perf_counter() - start

    steps(1)
    # Enough of them that what `fit` does once does not count.
    count = max(1, round(2 * tuning.ROUND_SECONDS / max(steps(1), 1e-3)))
    return lambda: steps(count) / count


def inference(dumped: str, batch: int) -> Round:
    """Builds a network in float32; a round returns the seconds of one call."""
    recipe = tuning.shortened(parse_recipe(dumped))
    shape = _shape(recipe)
    model = build_model(recipe.model, shape, recipe.data.classes or 10)
    images = tf.constant(np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32))
    answer = tf.function(lambda x: model(x, training=False), autograph=False)

    def call() -> float:
        start = time.perf_counter()
        answer(images).numpy()
        return time.perf_counter() - start

    for _ in range(3):
        call()
    return call


def counting(dumped: str) -> Round:
    """Builds a network; a round returns its multiply-accumulates of one image."""
    recipe = tuning.shortened(parse_recipe(dumped))
    macs = count_macs(build_model(recipe.model, _shape(recipe), recipe.data.classes or 10))
    return lambda: float(macs)


def reading(dumped: str, access: Access) -> Round:
    """Opens a recipe's training images; a round returns the seconds of reading a batch."""
    recipe = parse_recipe(dumped)
    dataset = open_dataset(recipe.data, access)
    examples = training_splits(dataset, recipe.data).train
    size = input_shape(recipe.data, dataset.shape)[:2]
    classes = len(dataset.classes)
    stream = TrainingStream(examples, recipe.data, size, recipe.augment, recipe.seed, classes)
    batches = iter(stream.dataset(0))

    def read(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - start

    read(10)  # those that were prepared while nobody waited
    count = max(2, round(tuning.ROUND_SECONDS / max(read(5) / 5, 1e-4)))
    return lambda: read(count) / count


def matrix_products() -> Round:
    """A round returns the seconds of a product of two float32 matrices."""
    a = tf.random.stateless_normal((MATRIX_SIDE, MATRIX_SIDE), (0, 1))

    def products(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            product = tf.matmul(a, a)
        product.numpy()
        return (time.perf_counter() - start) / count

    products(2)
    return lambda: products(10)


def profile(recipe: Recipe, folder: Path, access: Access) -> dict[str, Any]:
    """Traces some training steps on the real data, for TensorBoard.

    Args:
        recipe: what to train.
        folder: of the trace; `tensorboard --logdir` shows it.
        access: where data sets lie.

    Returns:
        "operations": the dearest kinds of operations, with their ms and share of the time of all;
        "waiting_for_data": the share of the steps' time.

    Raises:
        DataError: the data set is not there.
    """
    settings = tuning.choose(recipe, tune=False).settings
    with Worker(
        _profiling, recipe.dump(), settings, str(folder), access, environment=settings.environment()
    ) as worker:
        try:
            worker.ready(TIMEOUT_S)
            wall_s = worker.round(TIMEOUT_S)
        except WorkerError as error:
            raise DataError(str(error), where=recipe.name) from None
    spent: dict[str, float] = {}
    for name, seconds in _events(folder):
        spent[name] = spent.get(name, 0.0) + seconds
    waiting = spent.pop("IteratorGetNext", 0.0)
    total = sum(spent.values())
    return {
        "steps": PROFILED_STEPS,
        "seconds": round(wall_s, 3),
        "operations": [
            {"operation": name, "ms": round(1000 * seconds, 1), "share": round(seconds / total, 4)}
            for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:DEAREST]
        ],
        "waiting_for_data": round(min(1.0, waiting / wall_s), 4),
    }


def _profiling(dumped: str, settings: Settings, folder: str, access: Access) -> Round:
    from cnnbench.learner import Learner

    recipe = parse_recipe(dumped)
    train = recipe.train.model_copy(update={"steps_per_call": 1})
    others = beginning.runs(recipe)
    learner = Learner(recipe.model_copy(update={"train": train}), access, settings, others)
    iterator, numbers = learner.batches(0), itertools.count()
    rates = np.zeros(1, np.float32)

    def steps(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            learner.run_steps(iterator, next(numbers), rates, 1)
        return time.perf_counter() - start

    steps(5)

    def traced() -> float:
        with tf.profiler.experimental.Profile(folder):
            return steps(PROFILED_STEPS)

    return traced


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields the kind and the seconds of every operation in the newest trace below a folder."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime_ns)
    space = xplane_pb2.XSpace.FromString(newest.read_bytes())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # Operations are called "name:Kind"; "Class::Method" is something else.
                name, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                is_operation = colon and kind.isidentifier() and not name.endswith(":")
                if is_operation and kind not in ("While", "PartitionedCall"):
                    yield kind, event.duration_ps / 1e12


def _shape(recipe: Recipe) -> tuple[int, int, int]:
    data = tuning.shortened(recipe).data
    height, width, channels = data.options()["shape"]
    return height, width, channels


def _macs(recipe: Recipe) -> float:
    """Counts the multiply-accumulates of an image in a process of its own."""
    with Worker(counting, recipe.dump()) as worker:
        worker.ready(TIMEOUT_S)
        return worker.round(TIMEOUT_S)
