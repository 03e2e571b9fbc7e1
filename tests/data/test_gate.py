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
from cnnbench.data.gate import QUIET_SECONDS, Gate
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


def test_batches_are_ready_before_the_step_asks_for_them(deterministic):
    ahead, third = stream(ArraySource), threading.Event()
    augment = ahead._one_by_one

    def told(spec, place, images, step):
        if step == 2:
            third.set()
        return augment(spec, place, images, step)

    ahead._one_by_one = told
    batches = iter(ahead.dataset(0))
    next(batches)
    assert third.wait(60)


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
    open_stream, begun = stream(ArraySource), []
    read = open_stream._read
    open_stream._read = lambda positions, epoch: begun.append(positions) or read(positions, epoch)
    batches = iter(open_stream.dataset(0))
    next(batches)
    open_stream.close()
    count = len(begun)
    blank = [next(batches)[0].numpy() for _ in range(20)][-1]  # more than were ready
    assert len(begun) == count and not blank.any()
    again = [x.numpy() for x, _ in open_stream.dataset(0).take(2)]  # a new data set is open
    assert again[0].any() and again[1].any()


def test_a_gate_waits_for_what_runs():
    gate, done = Gate(), []
    begun, may_end = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert may_end.wait(60)
        done.append(1)

    slow = gate.guarded(work, lambda: done.append(2))
    threads = [threading.Thread(target=slow), threading.Thread(target=gate.close)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(4 * QUIET_SECONDS)
    assert threads[1].is_alive() and not done
    may_end.set()
    for thread in threads:
        thread.join(60)
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
