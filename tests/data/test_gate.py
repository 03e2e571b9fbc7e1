"""Augmentation ahead of the step: its bits, its threads and its errors."""

import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.data.examples import ArraySource, Examples
from cnnbench.data.gate import Gate
from cnnbench.data.pipeline import TrainingStream
from cnnbench.errors import DataError
from cnnbench.registry.kinds import AUGMENTATIONS, DATASETS

SECONDS = 0.05


class Slow(ArraySource):
    """A source whose reads take a while, and of which one may fail."""

    fails_at = -1

    def read(self, index):
        time.sleep(SECONDS / 2)
        if index == self.fails_at:
            raise DataError("gone", where="a file")
        return self.images[index], self.targets[index]


@pytest.fixture
def deterministic():
    with session.isolated():
        session.prepare(seed=0, deterministic=True)
        yield


def stream(source=Slow, count=8):
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), np.uint8)
    examples = Examples(source(images, np.arange(count, dtype=np.int32)), np.arange(count))
    crop = AUGMENTATIONS.spec("random_resized_crop")  # reads one by one
    augment = [crop, AUGMENTATIONS.spec("rand_augment"), AUGMENTATIONS.spec("mixup")]
    spec = DATASETS.spec("synthetic", batch_size=4)
    return TrainingStream(examples, spec, (8, 8), augment, 0, partial(tf.one_hot, depth=count))


def test_batches_are_ready_when_the_step_asks_for_them(deterministic):
    batches = iter(stream().dataset(0))
    next(batches)
    waits = []
    for _ in range(6):
        time.sleep(4 * SECONDS)  # the step
        start = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - start)
    assert np.median(waits) < SECONDS / 4


def test_determinism_changes_no_bit_and_a_resume_none_either():
    with session.isolated():
        plain = [(x.numpy(), y.numpy()) for x, y in stream().dataset(0).take(7)]
        session.prepare(seed=0, deterministic=True)
        found = [(x.numpy(), y.numpy()) for x, y in stream().dataset(0).take(7)]
        resumed = [(x.numpy(), y.numpy()) for x, y in stream().dataset(4).take(3)]
    for one, other in ((plain, found), (plain[4:], resumed)):
        for (images, labels), (others, theirs) in zip(one, other, strict=True):
            assert np.array_equal(images, others) and np.array_equal(labels, theirs)


def test_an_error_comes_with_its_step_and_not_before(deterministic):
    failing = stream(type("Failing", (Slow,), {"fails_at": 3}), 200)
    first = next(step for step in range(50) if 3 in failing.positions(step)[1])
    start = max(0, first - 2)
    batches = iter(failing.dataset(start))
    for _ in range(first - start):
        next(batches)
    with pytest.raises(tf.errors.OpError):
        next(batches)
    assert isinstance(failing.failure, DataError) and "gone" in str(failing.failure)


def test_a_closed_stream_reads_no_more(deterministic):
    calls = []

    class Counting(Slow):
        def read(self, index):
            calls.append(index)
            return super().read(index)

    open_stream = stream(Counting)
    batches = iter(open_stream.dataset(0))
    next(batches)
    open_stream.close()
    time.sleep(10 * SECONDS)  # what was begun is read to its end
    count = len(calls)
    time.sleep(4 * SECONDS)
    assert len(calls) == count
    del batches
    again = [x.numpy() for x, _ in open_stream.dataset(0).take(2)]  # a new data set is open
    assert again[0].any() and again[1].any()


def test_a_gate_waits_for_what_runs():
    gate, done = Gate(), []
    slow = gate.guarded(lambda: (time.sleep(0.2), done.append(1)), lambda: done.append(2))
    thread = threading.Thread(target=slow)
    thread.start()
    time.sleep(0.05)
    gate.close()
    assert done == [1]
    slow()
    assert done == [1, 2]


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[1])
import test_gate
from cnnbench.backend import session
session.prepare(seed=0, deterministic=True)
batches = iter(test_gate.stream().dataset(0))
next(batches)
if sys.argv[2:]:
    raise SystemExit(7)
"""


@pytest.mark.slow  # imports TensorFlow in a process
@pytest.mark.parametrize("more", [[], ["exit"]])
def test_a_process_ends_though_its_batches_do_not(more):
    folder = str(test_a_gate_waits_for_what_runs.__code__.co_filename).rpartition("/")[0]
    command = [sys.executable, "-c", ENDLESS, folder, *more]
    assert subprocess.run(command, timeout=120).returncode == (7 if more else 0)
