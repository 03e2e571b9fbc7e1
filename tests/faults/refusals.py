"""What must not go on: two writers of one run, a run that is no longer what it was, and NaN."""

from __future__ import annotations

import itertools
import math
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnbench import load_recipe, open_run
from cnnbench.errors import RunError
from cnnbench.runs import checkpoint
from cnnbench.runs.create import commit, new_run
from cnnbench.runs.facts import DataFacts

from .harness import (
    RECIPE,
    SHORT,
    TIMEOUT_S,
    Harm,
    Training,
    Try,
    files_of_a_run,
    forks,
    newest_step,
    read_all,
    row,
    unpack,
)

FACTS = DataFacts(
    name="none", fingerprint="", classes=["a", "b"], stored_channels=1, input_shape=[16, 16, 1],
    color="grey", mean=[0.5], std=[0.5],
)  # fmt: skip


@row(11, "Two processes, one run directory: one goes on, the other exits with 6", full=50, short=2)
def races(count: int) -> Iterator[Try]:
    for _ in range(count):
        yield _races


def _races(folder: Path, random: random.Random) -> None:
    """Two begin a run, two resume it, and two more after its holder was killed."""
    (folder / "recipe.yaml").write_text(RECIPE)
    path = folder / "run"
    _race(_begin_run, path, random, [0, 6])
    _race(_hold_run, path, random, [0, 6])
    held = forks().Barrier(2)
    holder = forks().Process(target=_hold_run, args=(path, partial(_stay, held)), daemon=True)
    holder.start()
    held.wait(TIMEOUT_S)
    _race(_hold_run, path, random, [6, 6])
    holder.kill()
    holder.join(TIMEOUT_S)
    _race(_hold_run, path, random, [0, 6])
    open_run(path)


def _race(enter: Callable[..., None], path: Path, random: random.Random, wanted: list[int]) -> None:
    """Lets two processes do the same at the same time, and compares their exit codes, sorted."""
    start, end = forks().Barrier(2), forks().Barrier(2)
    both = [
        forks().Process(
            target=_contend,
            args=(enter, path, start, end, random.choice((0, random.uniform(0, 0.002)))),
            daemon=True,
        )
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(TIMEOUT_S)
    codes = [process.exitcode for process in both]
    assert sorted(codes, key=str) == wanted, f"{enter.__name__}: exit codes {codes}"


def _contend(enter: Callable[..., None], path: Path, start: Any, end: Any, delay_s: float) -> None:
    start.wait(TIMEOUT_S)
    time.sleep(delay_s)
    try:
        enter(path, partial(end.wait, TIMEOUT_S))
    except RunError as error:
        end.wait(TIMEOUT_S)
        sys.exit(error.exit_code)


def _begin_run(path: Path, wait: Callable[[], object]) -> None:
    with new_run(path, load_recipe(path.parent / "recipe.yaml")) as run:
        commit(run, FACTS, {"onednn": None, "xla": False, "threads": None})
        wait()


def _hold_run(path: Path, wait: Callable[[], object]) -> None:
    with open_run(path).locked():
        wait()


def _stay(held: Any) -> None:
    held.wait(TIMEOUT_S)
    time.sleep(TIMEOUT_S)


@dataclass(frozen=True)
class Change:
    """Something that is not what it was when the run began.

    told: what the refusal says, a regular expression.
    base: how the run is begun, in a try's folder; one that is interrupted.
    make: changes it, and returns options of the command and harms.
    forced: whether --force goes on with it.
    """

    told: str
    base: Callable[[Path], Training]
    make: Callable[[Training], tuple[list[str], list[Harm]]]
    forced: bool = False


@row(12, "Another recipe, data, code or number of replicas: refused, and told", full=12)
def changes(count: int) -> Iterator[Try]:
    for change in CHANGES[:count]:
        yield partial(_changed, change=change)


def _changed(folder: Path, random: random.Random, *, change: Change) -> None:
    training = change.base(folder)
    options, harms = change.make(training)
    before = _files_but_lock(training.run)
    for forced in ((), ("--force",)):
        command = training.start(*options, *forced, harms=harms)
        code = command.wait()
        if forced and change.forced:
            assert code == 0, f"--force: exit code {code}: {command.output}"
        else:
            assert code == 6, f"{change.told}, {forced}: exit code {code}: {command.output}"
            assert re.search(change.told, command.output, re.DOTALL), command.output
            assert _files_but_lock(training.run) == before, "a file of the run changed"


def _files_but_lock(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in read_all(path).items() if name != "lock"}


def _plain(folder: Path, *settings: str) -> Training:
    training = Training(folder, *settings)
    unpack(files_of_a_run(*settings, interrupted_at=10), training.run)
    return training


def _mirrored(folder: Path) -> Training:
    return _plain(folder, "train.strategy=mirrored")


def _of_images(folder: Path) -> Training:
    """A run on two classes of small image files."""
    pixels = np.random.Generator(np.random.Philox(0))
    for split, count in (("train", 12), ("test", 2)):
        for kind, number in itertools.product("ab", range(count)):
            file = folder / "images" / split / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            _noise(pixels).save(file, compress_level=0)
    data = f"{{name: image_folder, path: '{folder / 'images'}', image_size: 16, batch_size: 4}}"
    training = Training(folder, recipe=re.sub("(?m)^data: .*", f"data: {data}", RECIPE))
    training.interrupt(10)
    return training


def _noise(random: np.random.Generator) -> Image.Image:
    return Image.fromarray(random.integers(256, size=(16, 16, 3), dtype=np.uint8))


def _other_recipe(training: Training, before: str, after: str) -> tuple[list[str], list[Harm]]:
    training.recipe.write_text(RECIPE.replace(before, after))
    return [str(training.recipe)], []


def _edited_recipe(training: Training) -> tuple[list[str], list[Harm]]:
    kept = training.run / "recipe.yaml"
    kept.write_text(kept.read_text().replace("seed: 3", "seed: 4"))
    return [], []


def _one_image_more(training: Training) -> tuple[list[str], list[Harm]]:
    images = training.folder / "images" / "train" / "a"
    shutil.copy(images / "0.png", images / "one_more.png")
    return [], []


def _another_image(training: Training) -> tuple[list[str], list[Harm]]:
    """Of the same size in bytes."""
    file = training.folder / "images" / "train" / "a" / "0.png"
    size = file.stat().st_size
    _noise(np.random.default_rng(1)).save(file, compress_level=0)
    assert file.stat().st_size == size
    return [], []


def _another_class(training: Training) -> tuple[list[str], list[Harm]]:
    for split in ("train", "test"):
        (training.folder / "images" / split / "b").rename(training.folder / "images" / split / "c")
    return [], []


def _another_version(training: Training, package: str) -> tuple[list[str], list[Harm]]:
    return [], [partial(other_version, package)]


def _other_source(training: Training) -> tuple[list[str], list[Harm]]:
    return [], [other_source]


def _two_replicas(training: Training) -> tuple[list[str], list[Harm]]:
    return [], [two_devices]


CHANGES = (
    Change(
        r"-seed: 3.*\+seed: 4", _plain, partial(_other_recipe, before="seed: 3", after="seed: 4")
    ),
    Change(
        r"\n-.* lr: 0.002,.*\n\+.* lr: 0.1,",
        _plain,
        partial(_other_recipe, before="2.0e-3", after="0.1"),
    ),
    Change(
        r"-  batch_size: 8.*\+  batch_size: 4",
        _plain,
        partial(_other_recipe, before="batch_size: 8", after="batch_size: 4"),
    ),
    Change("the recipe was changed", _plain, _edited_recipe),
    Change("from the training data: added: train/a/one_more.png; ", _of_images, _one_image_more),
    Change("from the training data: replaced: train/a/0.png; ", _of_images, _another_image),
    Change(
        "from the training data: removed: test/b/.*; added: test/c/", _of_images, _another_class
    ),
    *(
        Change(rf"{each} was .*, is 0\.0\.1", _plain, partial(_another_version, package=each), True)
        for each in ("tensorflow", "keras", "cnnbench")
    ),
    Change("code_sha256 was 0+, is 1+", _plain, _other_source, True),
    Change("replicas was 1, is 2", _mirrored, _two_replicas),
)


def other_version(package: str) -> None:
    """Harm: has a package say another version."""
    from cnnbench.system import environment

    real = environment.versions
    environment.versions = lambda: real() | {package: "0.0.1"}


def other_source() -> None:
    """Harm: has the source of the package another hash."""
    from cnnbench.system import environment

    environment.code_sha256 = lambda: "1" * 64


def two_devices() -> None:
    """Harm: makes two devices of the CPU."""
    from cnnbench.backend.lazy import tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


PLACES = ("loss", "gradient", "weight")


@row(13, "NaN or Inf in loss, gradient or weight: stopped within a step, all intact", full=30)
def not_finite(count: int) -> Iterator[Try]:
    for number in range(count):
        yield partial(_not_finite, place=PLACES[number % len(PLACES)])


def _not_finite(folder: Path, random: random.Random, *, place: str) -> None:
    step, value = random.randrange(39), random.choice((math.nan, math.inf, -math.inf))
    training = Training(folder, SHORT)
    command = training.start(harms=[partial(poison, place, step, value, random.random())])
    code, output = command.wait(), command.output
    what = f"{value} in a {place} at step {step}"
    assert code == 4, f"{what}: exit code {code}: {output}"
    told = re.search(r"at step (\d+)", output)
    assert told and step <= int(told[1]) <= step + 1, f"{what}: {output}"
    assert not (training.run / "finished.json").exists(), what
    assert not list(training.run.rglob(".*")), f"{what}: partial files are left"
    kept = [checkpoint.load(training.run / "best")] if (training.run / "best").exists() else []
    if saved := newest_step(training.run):
        assert re.search(rf"step {saved} is intact", output), f"{what}, saved {saved}: {output}"
        kept.append(checkpoint.last(training.run / "checkpoints"))
    # A save is made every 7 to 9 steps, and none of what came after the fault.
    assert step - 9 <= saved <= step + 1, f"{what}: the newest checkpoint is of step {saved}"
    for array in itertools.chain.from_iterable(each.arrays.values() for each in kept):
        assert np.all(np.isfinite(array)), f"{what}: kept"


def poison(place: str, step: int, value: float, share: float) -> None:
    """Harm: makes one value of the losses, a gradient or a weight not finite in one step.

    Args:
        place: one of PLACES.
        step: how many were done before it; a weight is poisoned at its end.
        value: what is put there.
        share: which variable, and which of its values, of all of them.
    """
    from cnnbench.backend.lazy import tf
    from cnnbench.registry.kinds import LOSSES
    from cnnbench.training import learner

    optimizers: list[Any] = []

    def poisoned(values: Any, step: int) -> Any:
        here = tf.equal(tf.cast(optimizers[-1].iterations, tf.int32), step)
        size = math.prod(values.shape)
        chosen = tf.reshape(tf.one_hot(int(share * size), size, True, False), values.shape)
        return tf.where(tf.logical_and(here, chosen), value, values)

    def one_of(variables: list[Any]) -> int:
        return int(share * len(variables))

    def build(*arguments: Any, **options: Any) -> Any:
        optimizer = real_build(*arguments, **options)
        optimizers.append(optimizer)
        apply = optimizer.apply

        def and_poison(gradients: Any, variables: Any) -> None:
            apply(gradients, variables)
            variable = variables[one_of(variables)]
            variable.assign(poisoned(variable.value, step + 1))

        if place == "weight":
            optimizer.apply = and_poison
        return optimizer

    real_build, learner.build_optimizer = learner.build_optimizer, build
    if place == "loss":
        real_loss = LOSSES.build
        LOSSES.build = lambda *arguments: poisoned(real_loss(*arguments), step)
    elif place == "gradient":
        real_gradient = tf.GradientTape.gradient

        def gradient(tape: Any, target: Any, sources: Any) -> list[Any]:
            found = list(real_gradient(tape, target, sources))
            found[one_of(found)] = poisoned(found[one_of(found)], step)
            return found

        tf.GradientTape.gradient = gradient
