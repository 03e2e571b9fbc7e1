"""Calls from Python leave the process of whoever calls as it was."""

import copy
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import cnnbench as command_line
from PIL import Image

import cnnbench
from cnnbench.backend import private, session
from cnnbench.errors import DivergedError, InterruptedRun
from cnnbench.evaluation.artifact import evaluate_artifact
from cnnbench.evaluation.compare import compare
from cnnbench.exports.options import ExportOptions
from cnnbench.runs import network
from cnnbench.training.callbacks import Callbacks

# Environment variables that may stay set; docs/python.md says so.
DOCUMENTED = {"TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND", "TF_ENABLE_ONEDNN_OPTS"}
FEW = ExportOptions(examples=50, tolerance=1.0)


def callers_model():
    """A model as a caller has one, of layers that Keras names, with dropout and an optimizer."""
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    return model


class Caller:
    """A program with a state of its own everywhere; `goes_on` is all that it then computes."""

    def __init__(self, policy: str = "mixed_bfloat16", seed: int | None = 42):
        private.disable_determinism()
        keras.utils.clear_session()
        random.seed(1)
        np.random.seed(2)
        if seed is not None:
            keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(policy)
        self.model = callers_model()
        self.draw = tf.function(lambda: tf.random.uniform((2,)))
        self.layer = keras.layers.Dropout(0.5)
        self.goes_on()

    def goes_on(self) -> list[object]:
        images = np.random.normal(size=(8, 4)).astype(np.float32)
        losses = self.model.fit(images, np.arange(8) % 2, verbose=0, shuffle=False).history["loss"]
        found = [
            random.random(),
            images.tolist(),
            tf.random.normal((2,)).numpy().tolist(),
            tf.random.normal((2,), seed=3).numpy().tolist(),
            self.draw().numpy().tolist(),
            tf.function(lambda: tf.random.normal((2,)))().numpy().tolist(),
            keras.random.normal((2,)).numpy().tolist(),
            self.layer(np.ones((1, 16)), training=True).numpy().astype(float).tolist(),
            losses,
            self.model.predict(images, verbose=0).tolist(),
            callers_model().predict(images, verbose=0).tolist(),
        ]
        names = [keras.layers.Dense(1).name, callers_model().name, callers_model().layers[0].name]
        return [*found, *names, keras.config.dtype_policy().name]


def settings() -> dict[str, object]:
    """What a call may not change, without drawing anything."""
    environment = {k: v for k, v in os.environ.items() if k not in DOCUMENTED}
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    return {
        "determinism": private.is_deterministic(),
        "environment": environment,
        "signals": handlers,
        "folder": Path.cwd(),
        "precision": np.geterr(),
        "eager": tf.config.functions_run_eagerly(),
        "graph": tf.compat.v1.get_default_graph(),
        "log level": tf.get_logger().level,
        "floatx": (keras.config.floatx(), keras.config.image_data_format()),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "switch interval": sys.getswitchinterval(),
    }


@pytest.fixture(scope="module")
def unmoved():
    """What a caller computes who is not disturbed."""
    with session.isolated():
        caller = Caller()
        return [caller.goes_on(), caller.goes_on()]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def exported(digits_run):
    (row,) = cnnbench.export(digits_run, ["tflite"], options=FEW)
    return Path(row["path"])


class Interrupting(Callbacks):
    def progressed(self, step, loss, score, images_per_s):
        raise KeyboardInterrupt


def train_in_stages(tiny, folder):
    text = tiny.read_text() + "compress: [{name: prune, sparsity: 0.5}, {name: qat}]\n"
    tiny.write_text(text)
    sets = ("train.epochs=1", "train.steps_per_call=1", "schedule.warmup_epochs=0")
    cnnbench.train(cnnbench.load_recipe(tiny, sets), run_dir=folder / "run")


def diverge(tiny, folder):
    with pytest.raises(DivergedError):
        cnnbench.train(cnnbench.load_recipe(tiny, ("optimizer.lr=1.0e+9",)), run_dir=folder / "r")


def interrupt_and_resume(tiny, folder):
    class Signalling(Callbacks):
        def progressed(self, *_):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRun):
        cnnbench.train(cnnbench.load_recipe(tiny), run_dir=folder / "run", callbacks=Signalling())
    cnnbench.resume(cnnbench.open_run(folder / "run"))


def fail_midway(tiny, folder):
    with pytest.raises(KeyboardInterrupt):
        cnnbench.train(cnnbench.load_recipe(tiny), run_dir=folder / "run", callbacks=Interrupting())


def called_from_outside():
    """Ends the tests' own scope, within which a public call takes itself for an inner one."""

    @contextmanager
    def outside():
        token = session._is_isolated.set(False)
        try:
            yield
        finally:
            session._is_isolated.reset(token)

    return outside()


def check(unmoved, *calls):
    """Makes the calls in the middle of a caller's program, which is to notice nothing."""
    with session.isolated():
        caller = Caller()
        assert caller.goes_on() == unmoved[0]
        before = settings()
        for call in calls:
            with called_from_outside():
                call()
            assert settings() == before
        assert caller.goes_on() == unmoved[1]


CALLS = [
    pytest.param(train_in_stages, marks=pytest.mark.slow),
    pytest.param(diverge, marks=pytest.mark.slow),
    interrupt_and_resume,
    fail_midway,
]


@pytest.mark.parametrize("call", CALLS)
def test_training_leaves_the_caller_alone(call, tiny, tmp_path, unmoved):
    check(unmoved, lambda: call(tiny, tmp_path))


def test_measuring_leaves_the_caller_alone(digits_run, exported, image, unmoved):
    check(
        unmoved,
        lambda: cnnbench.evaluate(digits_run),
        lambda: evaluate_artifact(digits_run, exported),
        lambda: cnnbench.predict(digits_run, [image]),
        lambda: network.restore(digits_run),
    )


@pytest.mark.slow
def test_exporting_leaves_the_caller_alone(digits_run, unmoved):
    check(
        unmoved,
        lambda: cnnbench.export(digits_run, ["saved_model", "keras"], options=FEW),
        lambda: cnnbench.export(
            digits_run, ["tflite"], ["int8"], options=replace(FEW, explain=True)
        ),
        lambda: compare([digits_run.path], examples=50),
    )


UNSEEDED = """
import random, sys
from pathlib import Path
import keras, tensorflow as tf
from absl import logging
import cnnbench
from cnnbench.backend import private

levels = tf.get_logger().level, logging.get_verbosity()
recipe = cnnbench.load_recipe(Path(sys.argv[1]), ("train.epochs=2",))
assert recipe.train.deterministic
cnnbench.train(recipe, run_dir=Path(sys.argv[2]))
assert (tf.get_logger().level, logging.get_verbosity()) == levels
assert keras.layers.Dense(1).name == "dense"
state = private.take_state()
assert state.seed is None and not state.deterministic, state
print(tf.random.normal((4,)).numpy(), random.random())
"""


@pytest.mark.slow
def test_a_caller_without_a_seed_still_has_none(small, tmp_path):
    outputs = []
    for name in ("one", "two"):
        command = [sys.executable, "-c", UNSEEDED, str(small), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines()[-1])
    assert outputs[0] != outputs[1]  # nobody set a seed, so nothing repeats


def test_determinism_of_the_caller_stays_on(digits_run):
    with session.isolated():
        tf.config.experimental.enable_op_determinism()
        with called_from_outside():
            cnnbench.evaluate(digits_run)
        assert private.is_deterministic()


def test_another_thread_keeps_its_names(digits_run):
    """Keras's names are each thread's own; a call does not reset those of the others."""
    names, go, done = [], threading.Event(), threading.Event()

    def other():
        names.append(keras.layers.Dense(1).name)
        go.wait()
        names.append(keras.layers.Dense(1).name)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    network.restore(digits_run)
    go.set()
    thread.join()
    assert names == ["dense", "dense_1"]


def test_a_restored_network_works_after_the_call(digits_run):
    net = network.restore(digits_run)
    images = np.random.default_rng(0).integers(0, 255, (3, *net.pixel_shape)).astype(np.uint8)
    first = net(images)["logits"].numpy()
    with session.isolated():
        keras.config.set_dtype_policy("mixed_float16")
        assert np.array_equal(net(images)["logits"].numpy(), first)


def results(run) -> tuple[bytes, list[dict]]:
    rows = [dict(row) for row in copy.deepcopy(run.metrics())]
    for row in rows:
        del row["seconds"], row["throughput_images_per_s"]
    return (run.best / "arrays.safetensors").read_bytes(), rows


@pytest.mark.slow
def test_training_does_not_depend_on_the_caller(small, tmp_path):
    """The same bits in a process of the command line, and within a program with its own state."""
    done = command_line("train", small, "--no-tune", "--run-dir", tmp_path / "process")
    assert done.returncode == 0, done.stderr
    recipe = cnnbench.load_recipe(small)
    with session.isolated():
        caller = Caller(policy="float16", seed=5)
        for name in ("one", "two"):
            with called_from_outside():
                run = cnnbench.train(recipe, run_dir=tmp_path / name)
            assert results(run) == results(cnnbench.open_run(tmp_path / "process"))
            caller.goes_on()


MALLOC = """
import ctypes, json, sys
def thresholds():
    # Of mallinfo: how many bytes lie in blocks of their own, which a block of 64 MB does unless
    # the thresholds were raised.
    libc = ctypes.CDLL(None)
    class Info(ctypes.Structure):
        _fields_ = [(n, ctypes.c_size_t) for n in
            ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
             "fordblks", "keepcost")]
    libc.mallinfo2.restype = Info
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    before = libc.mallinfo2().hblkhd
    block = libc.malloc(64 * 2**20)
    grown = libc.mallinfo2().hblkhd - before
    libc.free(block)
    return grown
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc's malloc alone")
def test_malloc_is_tuned_by_the_command_line_alone(small, tmp_path):
    library = MALLOC + (
        "import cnnbench; from pathlib import Path\n"
        f"recipe = cnnbench.load_recipe({str(small)!r}, ('train.epochs=2',))\n"
        f"run = cnnbench.train(recipe, run_dir=Path({str(tmp_path / 'run')!r}))\n"
        "cnnbench.evaluate(run)\n"
        "print(thresholds())"
    )
    command = MALLOC + (
        "from cnnbench.cli import main\n"
        "try: main(['list', 'models', '--json'])\n"
        "except SystemExit: pass\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print(); print(thresholds())"
    )
    grown = []
    for code in (library, command):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown.append(int(done.stdout.split()[-1]))
    assert grown[0] >= 64 * 2**20
    assert grown[1] == 0


def test_variables_are_set_before_an_import_alone():
    code = """
import os, sys
for name in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND"):
    os.environ.pop(name, None)
import tensorflow
before = dict(os.environ)
from cnnbench.backend.lazy import tf
from cnnbench.backend.settings import Settings, apply
from cnnbench.backend.private import uses_onednn
tf.constant(1)
apply(Settings(onednn=uses_onednn()))
import json
print(json.dumps(sorted(k for k in os.environ if os.environ[k] != before.get(k))))
"""
    command = [sys.executable, "-c", code]
    environment = {k: v for k, v in os.environ.items() if k not in DOCUMENTED}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
