"""The Keras session: seeds, determinism, precision and the distribution strategy."""

from __future__ import annotations

import functools
import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from cnnbench.backend import private
from cnnbench.backend.lazy import keras, tf
from cnnbench.errors import UsageError

_is_isolated: ContextVar[bool] = ContextVar("is_isolated", default=False)


@contextmanager
def isolated() -> Iterator[None]:
    """Restores, on exit, the caller's state that `prepare` and model building change.

    This covers the random state of Python, NumPy and TensorFlow, determinism, and Keras's state
    (name counters, dtype policy, seed, generator), which is fresh inside the context. Imports
    neither TensorFlow nor Keras. A nested context does nothing, so public functions can call each
    other. Not thread-safe: everything except Keras's state belongs to the process.

    On a GPU, switching determinism clears the eager kernels, which restarts random operations that
    have an op-level seed.
    """
    if _is_isolated.get():
        yield
        return
    # First, because it raises if Keras has another backend.
    state = private.take_state()
    python, numpy = random.getstate(), np.random.get_state()
    token = _is_isolated.set(True)
    try:
        yield
    finally:
        private.put_state_back(state)
        _set_determinism(state.deterministic)
        np.random.set_state(numpy)
        random.setstate(python)
        _is_isolated.reset(token)


def prepare(*, seed: int, deterministic: bool) -> None:
    """Sets seeds and determinism, as in a process that has not built a model yet.

    This changes global state: call it inside `isolated`, or in a process that cnnbench owns.

    Args:
        seed: for Python, NumPy, TensorFlow and Keras; decides initial weights and dropout.
        deterministic: True enables bit-exact operations, at some cost in speed; False leaves the
            setting unchanged.
    """
    private.seed_keras(seed)
    random.seed(seed)
    np.random.seed(seed)
    private.seed_tensorflow(seed)
    if deterministic:
        _set_determinism(True)
    gc.collect()  # earlier models, which contain reference cycles


def _set_determinism(wanted: bool) -> None:
    if "tensorflow" not in sys.modules or wanted == private.is_deterministic():
        return
    if wanted:
        tf.config.experimental.enable_op_determinism()
    else:
        private.disable_determinism()
    if tf.config.list_physical_devices("GPU"):  # cached kernels may have chosen an algorithm
        private.clear_kernels()


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Sets the Keras dtype policy for models built inside the context, then restores it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turns off TensorFloat-32, with which GPUs keep 10 bits of a float32's fraction, inside."""
    settings = tf.config.experimental
    before = settings.tensor_float_32_execution_enabled()
    settings.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        settings.enable_tensor_float_32_execution(before)


def strategy(name: str) -> Any:
    """Returns a tf.distribute strategy by name.

    Args:
        name: "tpu", "mirrored" (all GPUs, or all logical CPUs) or "one_device"; "auto" uses a TPU
            if TPU_NAME is set, else all GPUs if there are several, else the one device.

    Raises:
        UsageError: the machine has no such device.
    """
    if name == "auto":
        gpus = tf.config.list_logical_devices("GPU")
        if os.environ.get("TPU_NAME"):
            name = "tpu"
        elif len(gpus) > 1:
            name = "mirrored"
        else:
            name = "one_device"
    return _cached_strategy(name)


@functools.cache
def _cached_strategy(name: str) -> Any:
    """Creates a strategy once; creating a second one of its kind in a process would fail."""
    if name == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        except ValueError as error:
            raise UsageError(f"no TPU was found: {error}", key="train.strategy") from None
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
