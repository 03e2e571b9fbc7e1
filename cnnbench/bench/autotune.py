"""Tuning: finds the TensorFlow settings with which a recipe trains fastest on this machine.

No setting is best for all recipes: on a CPU, oneDNN speeds up large convolutions and slows down
depthwise ones, and XLA can do either. So before a long training each setting runs a few steps in a
separate process, all in turn, and the fastest is cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from cnnbench.backend.settings import Choice, Settings
from cnnbench.bench.jobs import ROUNDS, training_steps
from cnnbench.errors import CnnbenchError
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.sections import Runtime
from cnnbench.recipe.stand_in import shortened
from cnnbench.registry.kinds import DATASETS, MODELS, input_shape
from cnnbench.system import files
from cnnbench.system.environment import machine
from cnnbench.system.processes import Worker, WorkerError, alternate

# Shorter trainings are not worth a measurement. XLA may compile for minutes, so it needs more.
MIN_SECONDS = 300.0
MIN_SECONDS_XLA = 1800.0
# Rough throughput of training steps on a CPU with a few cores.
NOMINAL_FLOPS_PER_S = 1e11
# Measuring two settings takes less than 25 s on two cores; slower settings are dropped.
TIMEOUT_S, TIMEOUT_XLA_S = 60.0, 120.0


def choose(
    recipe: Recipe,
    *,
    tune: bool = True,
    seconds: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> Choice:
    """Chooses the TensorFlow settings of a training, without importing TensorFlow.

    Args:
        recipe: the recipe to train. Settings in its `train.runtime` are kept.
        tune: whether the other settings may be measured.
        seconds: how long training takes; short trainings are not tuned. None: estimated.
        tell: called with a message before a measurement, which takes half a minute or more.

    Returns:
        The settings, and the reason for them.
    """
    given = recipe.train.runtime if isinstance(recipe.train.runtime, Runtime) else Runtime()
    plain = Settings.of(given)
    if given.onednn is not None and given.xla is not None:
        return Choice(plain, "recipe")
    if not tune:
        return Choice(plain, "not tuned")
    if recipe.train.strategy not in ("auto", "one_device") or _has_gpu():
        return Choice(plain, "tuning is for one CPU")
    seconds = seconds or estimated_seconds(recipe)
    if seconds is None or seconds < MIN_SECONDS:
        return Choice(plain, "too short to be tuned")
    path = cache_file(recipe, given)
    cached, notes = _read_cache(path)
    if cached is not None:
        return Choice(cached, "remembered")
    candidates = _candidates(given, xla=seconds >= MIN_SECONDS_XLA)
    if tell:
        tried = ", ".join(map(name, candidates))
        tell(f"measuring which settings are fastest ({tried}); --no-tune skips this")
    try:
        measured, failures = measure(recipe, candidates)
    except WorkerError as error:
        measured, failures = {}, [str(error)]
    notes = (*notes, *failures)
    if not measured:
        return Choice(plain, "the probe failed", notes=notes)
    best = min(measured, key=lambda settings: measured[settings])
    with contextlib.suppress(CnnbenchError):  # tuning works without a cache
        files.write_json(path, asdict(best))
    by_name = {name(settings): round(value, 5) for settings, value in measured.items()}
    return Choice(best, "measured", by_name, notes)


def measure(
    recipe: Recipe, candidates: Sequence[Settings]
) -> tuple[dict[Settings, float], list[str]]:
    """Measures settings in turn, each in a separate process.

    Args:
        recipe: the recipe to train.
        candidates: the settings to compare.

    Returns:
        The median seconds of a training step for each setting that worked, and a message for each
        that failed.

    Raises:
        WorkerError: a setting that worked at first failed later.
    """
    notes, built = [], []
    with contextlib.ExitStack() as stack:
        workers = {
            settings: stack.enter_context(
                Worker(training_steps, recipe.dump(), settings, environment=settings.environment())
            )
            for settings in candidates
        }
        for settings, worker in workers.items():
            try:
                worker.ready(TIMEOUT_XLA_S if settings.xla else TIMEOUT_S)
            except WorkerError as error:
                worker.close()
                notes.append(f"runtime {name(settings)} failed and was skipped: {error}")
            else:
                built.append(settings)
        # Measured only after all are built, because building keeps the cores busy.
        firsts = {settings: workers[settings].round(TIMEOUT_S) for settings in built}
        # Settings that are far behind are measured only once.
        best = min(firsts.values(), default=0.0)
        close = [settings for settings, first in firsts.items() if first < 2 * best]
        rounds = alternate([workers[settings] for settings in close], ROUNDS, TIMEOUT_S)
    medians = {s: statistics.median(seconds) for s, seconds in zip(close, rounds, strict=True)}
    return firsts | medians, notes


def estimated_seconds(recipe: Recipe) -> float | None:
    """Returns roughly how many seconds a training takes, from its multiply-accumulates.

    None if the number of images or their size is unknown without opening the data.
    """
    train, facts = recipe.train, DATASETS.get(recipe.data.name).facts
    examples = recipe.data.limit or facts.get("train_examples")
    if train.steps is not None:
        images = float(train.steps * recipe.data.batch_size)
    elif train.examples is not None:
        images = float(train.examples)
    elif examples is not None and train.epochs is not None:
        images = train.epochs * examples
    else:
        return None
    about = MODELS.get(recipe.model.name).facts
    stored = recipe.data.options().get("shape") or facts.get("shape", (None, None, 3))
    if recipe.data.image_size is None and None in stored:
        return None
    # Two operations per multiply-accumulate; the backward pass costs twice the forward pass.
    return 6 * macs(about, input_shape(recipe.data, stored)) * images / NOMINAL_FLOPS_PER_S


def macs(facts: Mapping[str, Any], shape: Sequence[int]) -> float:
    """Returns roughly the multiply-accumulates of a network per image.

    They are scaled with the number of pixels, which is too low for a stem that keeps the size.

    Args:
        facts: the registered facts of the model.
        shape: (height, width, channels) of the image.
    """
    height, width, _ = facts["native"]
    return facts["macs"] * shape[0] * shape[1] / (height * width)


def cache_file(recipe: Recipe, given: Runtime) -> Path:
    """Returns the cache file of the fastest settings for a recipe's steps on this machine."""
    short = shortened(recipe)
    about = machine()
    key = json.dumps(
        [
            short.model.model_dump(),
            short.data.model_dump(),
            short.optimizer.name,
            short.train.precision,
            short.train.deterministic,
            short.train.accumulate,
            short.train.sam is not None,
            given.model_dump(),
            [about["cpu"], about["cores"], platform.machine()],
            [metadata.version(package) for package in ("tensorflow", "keras", "cnnbench")],
        ]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()
    return files.cache_folder("runtime") / f"{digest[:32]}.json"


def name(settings: Settings) -> str:
    """Returns a name for settings, such as "onednn" or "xla"."""
    words = [word for word in ("onednn", "xla") if getattr(settings, word)]
    words += [f"{settings.threads} threads"] if settings.threads else []
    return " ".join(words) or "neither"


def _candidates(given: Runtime, *, xla: bool) -> list[Settings]:
    onednn = (True, False) if given.onednn is None else (given.onednn,)
    found = [Settings(use, bool(given.xla), given.threads) for use in onednn]
    if xla and given.xla is None:  # once is enough, because XLA has its own kernels
        found.append(Settings(onednn[-1], True, given.threads))
    return found


def _read_cache(path: Path) -> tuple[Settings | None, tuple[str, ...]]:
    """Returns the cached settings, if any, and a note if the file is damaged."""
    if not path.is_file():
        return None, ()
    try:
        kept = json.loads(path.read_text())
        settings = Settings(**kept)
        if not isinstance(settings.onednn, bool) or not isinstance(settings.xla, bool):
            raise TypeError("not settings")
    except (OSError, ValueError, TypeError):
        return None, (f"{path} is damaged and ignored",)
    return settings, ()


def _has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or bool(os.environ.get("TPU_NAME"))
