"""What several test files share: the command line as a process, the real data, one trained run."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnbench.backend import lazy
from cnnbench.system import files

lazy.load()
# Training collects garbage before it builds a network: faster without the objects of packages.
# Building makes so many objects that collecting as often as by default takes a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"

SMALL = """
name: small
seed: 3
model: {name: resnet8, dropout: 0.1}
data: {name: synthetic, batch_size: 16, examples: 96, shape: [16, 16, 3], validation: 16}
augment: [{name: random_crop, padding: 2}, {name: random_flip}]
regularization: {l2: 1.0e-4}
optimizer: {name: momentum, lr: 0.05}
schedule: {name: cosine, warmup_epochs: 1}
train: {epochs: 3, steps_per_call: 2}
"""
# With a LeNet, which is built and traced in half the time.
TINY = SMALL.replace("resnet8", "lenet5").replace("name: small", "name: tiny")


def pytest_configure(config: pytest.Config) -> None:
    """Leaves the seeds to `seeded` in a random order too."""
    if config.pluginmanager.hasplugin("randomly"):
        config.option.randomly_reset_seed = False


def cnnbench(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Runs the command line as its own process."""
    command = [sys.executable, "-m", "cnnbench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def here(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Runs the command line in this process: as `cnnbench`, without 6 s to import TensorFlow."""
    from cnnbench.cli import main

    out, err, code = io.StringIO(), io.StringIO(), None
    sigterm = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, sigterm)
        stack.callback(_restore, dict(os.environ))
        stack.enter_context(contextlib.chdir(cwd or Path.cwd()))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def resign(run, environment: dict) -> None:
    """Writes an environment.json that says something else, as if the run had begun so."""
    environment.pop("sha256", None)
    (run.path / "environment.json").write_text(json.dumps(files.signed(environment)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws is the same in any order of the tests: first weights, NumPy, Python."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture
def random() -> np.random.Generator:
    """A generator that begins anew in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def structure_only():
    """Networks are built without values of their weights, in half the time."""
    from cnnbench.backend.lazy import keras

    with keras.StatelessScope(initialize_variables=False):
        yield


@pytest.fixture
def small(tmp_path) -> Path:
    """A recipe that trains in seconds and uses dropout, batch norm, augmentation and a schedule."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def tiny(tmp_path) -> Path:
    """The small recipe with a LeNet."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A LeNet trained on the digits for a few epochs."""
    from cnnbench import load_recipe, train

    recipe = load_recipe(RECIPES / "lenet5_digits.yaml", ("train.epochs=4", "data.validation=100"))
    return train(recipe, run_dir=tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The small recipe trained without an interruption: 15 steps in 3 epochs. Only to be read."""
    from cnnbench import load_recipe, train

    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(SMALL)
    return train(load_recipe(folder / "small.yaml"), run_dir=folder / "run")


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of the real CIFAR-10, prepared by TFDS."""
    for place in (os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "tfds"):
        if place and (Path(place) / "cifar10").is_dir():
            return Path(place)
    pytest.skip("no prepared CIFAR-10: set TFDS_DATA_DIR to the folder that holds cifar10/")
