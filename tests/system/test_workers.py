"""Processes that measure: what they answer, and how they fail."""

import math
import os
import signal
import tempfile
import time

import pytest

from cnnbench.system.processes import Worker, WorkerError, alternate

QUICK = 60.0


def counting(step):
    counts = iter(range(10**6))
    return lambda: step * next(counts)


def reading(name):
    return lambda: float(os.environ.get(name, "nan"))


def broken():
    raise ValueError("no such thing")


def failing_later():
    return lambda: 1 / 0


def without_a_kernel():
    from cnnbench.backend.lazy import tf

    pools = tf.function(
        lambda x: tf.gradients(tf.nn.max_pool2d(x, 2, 2, "VALID"), x), jit_compile=True
    )
    tf.config.experimental.enable_op_determinism()
    return lambda: pools(tf.ones((1, 4, 4, 1)))[0].numpy()


def dying():
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def traced():
    from cnnbench.backend.lazy import tf

    @tf.function
    def clipped(x):
        if x > 1:  # rewritten by AutoGraph, in a file below the temporary folder
            x = tf.ones_like(x)
        return x

    return lambda: clipped(tf.constant(2.0)).numpy()


def cut_off():
    raise EOFError("the file is cut off")


def sleeping():
    return lambda: time.sleep(300)


def test_rounds_take_turns_and_each_process_keeps_its_own():
    with Worker(counting, 1) as a, Worker(counting, 10) as b:
        assert a.ready(QUICK) > 0 and b.ready(QUICK) > 0
        assert alternate([a, b], 3, QUICK) == [[0, 1, 2], [0, 10, 20]]
        assert 5 < a.peak_memory_mb() < 5000


@pytest.mark.parametrize(("before", "given", "found"), [(None, "1", 1.0), ("0", None, math.nan)])
def test_the_environment_is_set_before_anything_is_built(before, given, found, monkeypatch):
    if before is not None:
        monkeypatch.setenv("CNNBENCH_TEST", before)
    with Worker(reading, "CNNBENCH_TEST", environment={"CNNBENCH_TEST": given}) as worker:
        worker.ready(QUICK)
        assert worker.round(QUICK) == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (broken, "ValueError: no such thing"),
        (failing_later, "ZeroDivisionError"),
        (cut_off, "EOFError: the file is cut off"),
        (without_a_kernel, "MaxPool gradient ops do not yet have a deterministic XLA"),
        (dying, "ended by signal 9"),
    ],
)
def test_a_failure_is_told_in_one_line(build, what):
    with Worker(build) as worker, pytest.raises(WorkerError, match=what) as caught:
        worker.ready(QUICK)
        worker.round(QUICK)
    assert "\n" not in str(caught.value)


def test_one_that_hangs_is_given_up_and_ended():
    with Worker(sleeping) as worker:
        worker.ready(QUICK)
        start = time.monotonic()
        with pytest.raises(WorkerError, match="no response to 'round' in 1 s"):
            worker.round(1.0)
    assert time.monotonic() - start < 150  # of the 300 that it would take


def test_a_killed_worker_leaves_no_files_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Worker(traced) as worker:
        worker.ready(QUICK)
        assert worker.round(QUICK) == 1
        assert list(tmp_path.glob("*/__autograph_generated_file*"))
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="the process ended by signal 9"):
            worker.round(QUICK)
    assert not list(tmp_path.iterdir())
