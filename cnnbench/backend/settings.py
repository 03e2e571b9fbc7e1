"""How TensorFlow runs: chosen before it is imported, or before a model is built."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cnnbench.errors import UsageError
from cnnbench.lazy import keras, tf

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
THREADS = "TF_NUM_INTRAOP_THREADS"
# Of malloc.h: how many bytes are free at least before some are returned to the system, and how many
# a block has at least that is taken from the system alone.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Settings:
    """How TensorFlow runs a training.

    onednn: whether oneDNN's kernels are used on a CPU; None: as TensorFlow decides.
    xla: whether XLA compiles a training step.
    threads: that one operation may use; None: one a core.
    """

    onednn: bool | None = None
    xla: bool = False
    threads: int | None = None

    def environment(self) -> dict[str, str | None]:
        """Returns the variables that TensorFlow reads when it is imported; None is for unset."""
        return {
            ONEDNN: None if self.onednn is None else str(int(self.onednn)),
            THREADS: None if self.threads is None else str(self.threads),
        }

    @classmethod
    def of(cls, given: Any) -> Settings:
        """Returns what a recipe's `train.runtime` gives, which may be "auto"."""
        if given == "auto":
            return cls()
        return cls(given.onednn, bool(given.xla), given.threads)


@dataclass(frozen=True)
class Choice:
    """Settings, and why.

    reason: "recipe", "measured", "remembered", or why nothing was measured.
    seconds_per_step: of each candidate, by its name; empty where nothing was measured.
    notes: what a person should be told of how it was found.
    """

    settings: Settings
    reason: str
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def about(self) -> dict[str, Any]:
        """Returns what environment.json says, with what is so where TensorFlow decided."""
        return asdict(self.settings) | {
            "onednn": uses_onednn(),
            "reason": self.reason,
            "seconds_per_step": dict(self.seconds_per_step),
        }


def apply(settings: Settings) -> None:
    """Sets what TensorFlow reads when it is imported.

    Raises:
        UsageError: it is imported already, with other settings.
    """
    wanted = {k: v for k, v in settings.environment().items() if v is not None}
    changed = {k: v for k, v in wanted.items() if os.environ.get(k) != v}
    if changed.get(ONEDNN) and "tensorflow" in sys.modules and settings.onednn == uses_onednn():
        del changed[ONEDNN]
    if changed and "tensorflow" in sys.modules:
        raise UsageError(
            "train.runtime cannot be changed once TensorFlow is imported",
            allowed="set " + " ".join(f"{k}={v}" for k, v in changed.items()) + " before",
        )
    os.environ.update(wanted)


def uses_onednn() -> bool:
    """Tells whether TensorFlow uses oneDNN's kernels; imports it."""
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def prepare(*, seed: int, deterministic: bool) -> None:
    """Sets the seed of initial weights and dropout, and determinism.

    Args:
        seed: of Python, NumPy and TensorFlow.
        deterministic: whether operations give the same bits each time, at some cost.
    """
    _keep_freed_memory()
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def _keep_freed_memory() -> None:
    """Has the C library keep what is freed, for the next step asks for the same again.

    By itself, glibc returns large blocks to the system, which then hands out and clears each page
    of them anew. Other C libraries do as they do.
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library, or none with mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 2**30)


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
