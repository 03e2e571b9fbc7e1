"""Profiles training steps with TensorFlow's profiler."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend import private
from cnnbench.backend.lazy import tf
from cnnbench.backend.settings import Settings
from cnnbench.bench import autotune
from cnnbench.bench.jobs import TIMEOUT_S
from cnnbench.data.open import Access
from cnnbench.errors import DataError
from cnnbench.recipe.load import parse_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.system.memory import keep_freed_memory
from cnnbench.system.processes import Round, Worker, WorkerError
from cnnbench.training.start import referenced_runs

PROFILED_STEPS = 20
MAX_OPERATIONS = 10


def profile(recipe: Recipe, folder: Path, access: Access) -> dict[str, Any]:
    """Traces a few training steps on the real data.

    Args:
        recipe: the recipe to train.
        folder: where to write the trace; `tensorboard --logdir` shows it.
        access: where data sets are stored.

    Returns:
        "steps" and "seconds": of the trace; "operations": the slowest kinds of operations, with
        time in ms and share of the time of all operations; "waiting_for_data": the share of the
        time of the steps, in [0, 1].

    Raises:
        DataError: the data set is missing.
    """
    settings = autotune.choose(recipe, tune=False).settings
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
            for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:MAX_OPERATIONS]
        ],
        "waiting_for_data": round(min(1.0, waiting / wall_s), 4),
    }


def _profiling(dumped: str, settings: Settings, folder: str, access: Access) -> Round:
    from cnnbench.training.learner import Learner

    keep_freed_memory()  # as the command line does before it trains
    recipe = parse_recipe(dumped)
    train = recipe.train.model_copy(update={"steps_per_call": 1})
    others = referenced_runs(recipe)
    learner = Learner(recipe.model_copy(update={"train": train}), access, settings, others)
    numbers, rates = itertools.count(), np.zeros(1, np.float32)

    def steps(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            learner.run_steps(iterator, next(numbers), rates, 1)
        return time.perf_counter() - start

    with contextlib.ExitStack() as stack:  # closed here if a step fails, else after the trace
        iterator = stack.enter_context(learner.batches(0))
        steps(5)
        opened = stack.pop_all()

    def traced() -> float:
        with opened, tf.profiler.experimental.Profile(folder):
            return steps(PROFILED_STEPS)

    return traced


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Yields the kind and seconds of each operation in the newest trace in a folder."""
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime_ns)
    space = private.read_trace(newest)
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # Operations are named "name:Kind"; "Class::Method" is not an operation.
                name, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                is_operation = colon and kind.isidentifier() and not name.endswith(":")
                if is_operation and kind not in ("While", "PartitionedCall"):
                    yield kind, event.duration_ps / 1e12
