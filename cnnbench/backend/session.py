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
    """Restores afterwards what `prepare` and building models change in the caller's process.

    That is the random state of Python, NumPy and TensorFlow, Keras's state (counters of names,
    dtype policy, seed, generator), which is fresh within, and whether operations are deterministic.
    Neither TensorFlow nor Keras is imported. One inside another does nothing, so a public function
    may call others. Not for two threads at a time: all but Keras's state is the process's.

    On a GPU, switching determinism makes the kernels of eager operations anew, so random
    operations with a seed of their own start over.
    """
    if _is_isolated.get():
        yield
        return
    token = _is_isolated.set(True)
    python, numpy, state = random.getstate(), np.random.get_state(), private.take_state()
    try:
        yield
    finally:
        private.put_state_back(state)
        _set_determinism(state.deterministic)
        np.random.set_state(numpy)
        random.setstate(python)
        _is_isolated.reset(token)


def prepare(*, seed: int, deterministic: bool) -> None:
    """Sets seeds and determinism, as if no model had been built in the process before.

    It changes the process: call it within `isolated`, or in a process of cnnbench's own.

    Args:
        seed: of Python, NumPy, TensorFlow and Keras, for initial weights and dropout.
        deterministic: whether operations give the same bits each time, at some cost; False leaves
            that as it is.
    """
    private.seed_keras(seed)
    random.seed(seed)
    np.random.seed(seed)
    private.seed_tensorflow(seed)
    if deterministic:
        _set_determinism(True)
    gc.collect()  # the models before this one, which are full of cycles


def _set_determinism(wanted: bool) -> None:
    if "tensorflow" not in sys.modules or wanted == private.is_deterministic():
        return
    if wanted:
        tf.config.experimental.enable_op_determinism()
    else:
        private.disable_determinism()
    if tf.config.list_physical_devices("GPU"):  # whose kernels may have chosen an algorithm
        private.clear_kernels()


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Builds models under a Keras dtype policy, which they keep, and then restores the other."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def strategy(name: str) -> Any:
    """Returns the tf.distribute strategy of that name.

    Args:
        name: "auto" takes a TPU if TPU_NAME is set, else every GPU, else the one device there is.

    Raises:
        UsageError: the machine has no such device.
    """
    if name == "auto":
        several = len(tf.config.list_logical_devices("GPU")) > 1
        name = "tpu" if os.environ.get("TPU_NAME") else "mirrored" if several else "one_device"
    return _made_once(name)


@functools.cache
def _made_once(name: str) -> Any:
    """Makes a strategy, of which a second one of its kind in a process would fail."""
    if name == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        except ValueError as error:
            raise UsageError(f"train.strategy is tpu, and there is none: {error}") from None
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
