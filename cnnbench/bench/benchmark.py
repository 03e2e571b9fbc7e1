"""Benchmarks of training, inference and the input pipeline on this machine.

Each measurement runs in a separate process; processes that are compared take turns. Results are
medians over the rounds, with their spread.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cnnbench.backend.settings import Settings
from cnnbench.bench import autotune, jobs
from cnnbench.bench.jobs import (
    MATRIX_SIDE,
    ROUNDS,
    TIMEOUT_S,
    available_memory_mb,
    counting,
    inference,
    limited_training,
    matrix_products,
    reading,
    stand_in_shape,
    stock_training,
)
from cnnbench.bench.profile import profile
from cnnbench.data.open import Access
from cnnbench.errors import DataError, UsageError
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import kind_of
from cnnbench.system.environment import machine, versions
from cnnbench.system.measure import INFERENCE_BATCHES, LATENCY_CALLS, latency_percentiles_ms
from cnnbench.system.processes import Worker, WorkerError, alternate

Mode = Literal["train", "infer", "data"]


def bench(
    recipes: Sequence[Recipe],
    mode: Mode = "train",
    *,
    rounds: int = ROUNDS,
    tune: bool = True,
    compare_stock: bool = False,
    access: Access | None = None,
) -> dict[str, Any]:
    """Benchmarks recipes, one after another.

    Args:
        recipes: the recipes. Training and inference use synthetic images of the recipe's size.
        mode: "train": training steps; "infer": inference by batch size; "data": reading and
            augmenting training images, and how long training waits for them.
        rounds: rounds per measurement.
        tune: whether to measure the fastest settings first, unless they are cached.
        compare_stock: whether to compare training with Keras's `fit` on the same network.
        access: where data sets are stored, for "data".

    Returns:
        "machine", "versions", "peak_gflops_per_s" of a matrix product, and "rows", one per
        measurement, with throughput and its spread in images/s, memory in MB of 2**20 bytes, and
        shares in [0, 1].

    Raises:
        UsageError: a recipe cannot be measured, for example because its batch exceeds memory.
        DataError: the data set is missing.
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
    choice = autotune.choose(recipe, tune=tune, seconds=float("inf"))
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
        "runtime": autotune.name(settings),
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
            rows.append(
                _row(recipe, "infer", batch, seconds, macs, peak)
                | {
                    "latency_ms": latency_percentiles_ms(seconds),
                    "peak_memory_mb": round(worker.peak_memory_mb(), 1),
                }
            )
    return rows


def _bench_data(recipe: Recipe, rounds: int, access: Access) -> dict[str, Any]:
    """Measures the pipeline with all augmentations, without any, and without each of them."""
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
        "input": list(stand_in_shape(recipe)),
        "throughput_images_per_s": round(rate, 1),
        "spread": [round(rates[0], 1), round(rates[-1], 1)],
        "gflops_per_s": round(2 * macs * rate / 1e9, 2),
        "share_of_peak": round(2 * macs * rate / peak, 4),
    }


def largest_batch(recipe: Recipe, settings: Settings) -> int:
    """Returns roughly the largest batch whose training step fits in the available memory.

    Extrapolated from the peak memory of two small batches, each in a separate process. With
    gradient accumulation, only one part of the batch takes memory at a time.
    """
    parts, peaks = recipe.train.accumulate, {}
    for batch in (16, 48):
        data = recipe.data.model_copy(update={"batch_size": batch * parts})
        dumped = recipe.model_copy(update={"data": data}).dump()
        with Worker(
            jobs.training_steps, dumped, settings, environment=settings.environment()
        ) as worker:
            worker.ready(TIMEOUT_S)
            peaks[batch] = worker.peak_memory_mb()
    mb_per_image = max((peaks[48] - peaks[16]) / 32, 1e-3)
    return parts * max(1, int(16 + (available_memory_mb() - peaks[16]) / mb_per_image))


def _macs(recipe: Recipe) -> float:
    """Returns the multiply-accumulates per image, counted in a separate process."""
    with Worker(counting, recipe.dump()) as worker:
        worker.ready(TIMEOUT_S)
        return worker.round(TIMEOUT_S)
