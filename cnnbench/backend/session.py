"""The Keras session: seeds, determinism, precision and the distribution strategy."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.errors import UsageError


def prepare(*, seed: int, deterministic: bool) -> None:
    """Sets the seed of initial weights and dropout, and determinism.

    Args:
        seed: of Python, NumPy and TensorFlow.
        deterministic: whether operations give the same bits each time, at some cost.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


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
