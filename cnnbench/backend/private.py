"""Private APIs of TensorFlow and Keras, each behind a function that documents why it is needed.

No other module may use private APIs. If an upgrade moves one, its test in
tests/backend/test_private.py fails, and the fix goes here. Functions that may be the first to use
TensorFlow or Keras import them through `lazy.load`, which hides their messages.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbench.backend.lazy import load, tf
from cnnbench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

# TensorFlow


def uses_onednn() -> bool:
    """Returns whether TensorFlow uses oneDNN kernels on the CPU.

    TF_ENABLE_ONEDNN_OPTS is only a request: the default depends on the CPU and the build, and
    `tf.config` and `tf.sysconfig` do not report the outcome.
    """
    load()
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def is_compiled_by_xla() -> bool:
    """Returns whether the function being traced is compiled by XLA.

    `jit_compile` is set on an outer tf.function; the public API does not expose it to the code
    that is traced.
    """
    from tensorflow.python.ops import control_flow_util

    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def record_reader(file: str) -> Any:
    """Returns a random-access reader of a TFRecord file.

    Its `read(offset)` returns a record and the offset of the next one. The public readers,
    `tf.data.TFRecordDataset` and `tf.compat.v1.io.tf_record_iterator`, only read from the start.
    """
    from tensorflow.python.lib.io.tf_record import tf_record_random_reader

    return tf_record_random_reader(file)


def read_trace(file: Path) -> Any:
    """Parses an .xplane.pb file of TensorFlow's profiler into its planes, lines and events.

    `tf.profiler` writes the file, but TensorFlow has no public API to read it.
    """
    load()
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2.XSpace.FromString(file.read_bytes())


def disable_determinism() -> None:
    """Reverts `tf.config.experimental.enable_op_determinism`, which has no public inverse."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()


def is_deterministic() -> bool:
    """Returns whether `tf.config.experimental.enable_op_determinism` is in effect.

    TensorFlow has no public getter for it.
    """
    from tensorflow.python.framework import config

    return bool(config.is_op_determinism_enabled())


def clear_kernels() -> None:
    """Clears the cache of eager kernels, so that the next call of each creates a new one.

    The public `keras.utils.clear_session` also does this, but it replaces the default graph and
    resets Keras's state in every thread, too.
    """
    from tensorflow.python.eager import context

    context.context().clear_kernel_cache()


def seed_tensorflow(seed: int) -> None:
    """Does the same as `tf.random.set_seed`, but keeps the cache of eager kernels.

    The kernels hold the counters of the caller's random operations with an op-level seed, which
    clearing would restart. cnnbench itself does not depend on them: its random operations are all
    stateless.
    """
    load()
    from tensorflow.python.eager import context

    context.context()._seed = seed
    context.context()._rng = random.Random(seed)  # noqa: S311 - same as TensorFlow


# TensorFlow Lite


def quantize(content: bytes, **options: Any) -> bytes:
    """Quantizes a calibrated TFLite file to integers.

    `tf.lite.TFLiteConverter` does this as its last step, but has no options to keep layers in
    float or to verify each layer.

    Args:
        content: a float32 file with calibrated tensor ranges.
        **options: passed to TensorFlow's `mlir_quantize`.
    """
    from tensorflow.lite.python.convert import mlir_quantize

    return bytes(mlir_quantize(content, **options))


def calibrate_only(converter: Any) -> None:
    """Makes a `tf.lite.TFLiteConverter` stop after calibration, before it quantizes.

    The public API only returns the quantized file.
    """
    converter._experimental_calibrate_only = True


def calibrate(content: bytes, images: Sequence[list[np.ndarray]]) -> bytes:
    """Returns a float32 TFLite file with the tensor ranges measured on the given images.

    The public converter calibrates on all of its images at once, so it cannot give ranges per
    batch.

    Args:
        content: a float32 file.
        images: for each image, the list of the file's inputs.
    """
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    return bytes(Calibrator(content).calibrate(lambda: images))


def converter_error() -> type[Exception]:
    """Returns the error of `tf.lite.TFLiteConverter.convert`, which `tf.lite` does not export."""
    from tensorflow.lite.python.convert_phase import ConverterError

    return ConverterError


# Keras


def maker_of(tensor: Any) -> Any:
    """Returns the layer or operation that produced a symbolic Keras tensor.

    The public `keras.utils.get_source_inputs` goes back to the model's inputs; nothing public goes
    back a single step.
    """
    return tensor._keras_history.operation


def variable_index(optimizer: Any, variable: Any) -> int:
    """Returns the index of a variable among those that an optimizer was built for.

    Subclasses override `update_step`, which receives the variable but not its index.
    """
    return int(optimizer._get_variable_index(variable))


def seed_keras(seed: int) -> None:
    """Resets and seeds Keras in this thread, like `clear_session` and then `set_random_seed`.

    This resets the layer name counters, the dtype policy and the global generator. The public
    functions also reset other threads, the default graph and TensorFlow's kernels, all of which
    the caller of cnnbench may be using.
    """
    load("keras")
    own_config()
    from keras.src.backend.common import global_state
    from keras.src.utils import rng_utils

    vars(global_state.GLOBAL_STATE_TRACKER).clear()  # a threading.local
    global_state.set_global_attribute(rng_utils.GLOBAL_RANDOM_SEED, seed)


# TensorFlow and Keras


# Keras's settings in ~/.keras/keras.json or of the caller, which change numbers: float type,
# epsilon and layout of images. Those of cnnbench are the defaults.
Config = tuple[str, float, str]
OWN_CONFIG: Config = ("float32", 1e-7, "channels_last")
# Those that a first import of Keras read inside cnnbench.
_imported: list[Config] = []


def own_config() -> None:
    """Sets the settings of Keras that change numbers to their defaults.

    Raises:
        UsageError: Keras was imported with another backend than TensorFlow.
    """
    config = sys.modules["keras"].config
    if config.backend() != "tensorflow":
        raise UsageError(
            f"Keras was imported with the backend {config.backend()}",
            allowed="set KERAS_BACKEND=tensorflow before Keras is imported",
        )
    if (found := _config()) != OWN_CONFIG:
        _imported[:] = _imported or [found]
        _set_config(OWN_CONFIG)


def _config() -> Config:
    config = sys.modules["keras"].config
    return config.floatx(), config.epsilon(), config.image_data_format()


def _set_config(wanted: Config) -> None:
    config = sys.modules["keras"].config
    config.set_floatx(wanted[0])
    config.set_epsilon(wanted[1])
    config.set_image_data_format(wanted[2])


@dataclass(frozen=True)
class State:
    """State changed by seeding, model building and determinism; defaults are those at import.

    Attributes:
        keras: Keras's state in this thread: name counters, dtype policy, seed, generator.
        seed: TensorFlow's global seed; None if not set.
        draws: generator of the seeds of operations without an op-level seed.
        deterministic: whether operations are deterministic.
        config: Keras's settings that change numbers; None if Keras was not imported.
    """

    keras: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    draws: random.Random | None = None
    deterministic: bool = False
    config: Config | None = None


def take_state() -> State:
    """Returns the state of TensorFlow and Keras, and resets that of Keras.

    The public API can set the seeds and counters but not read them. Imports neither package.

    Raises:
        UsageError: Keras was imported with another backend than TensorFlow.
    """
    found, seed, draws, deterministic, config = {}, None, None, False, None
    _imported.clear()
    if "keras" in sys.modules:
        config = _config()
        own_config()
        from keras.src.backend.common import global_state

        found = dict(vars(global_state.GLOBAL_STATE_TRACKER))
        vars(global_state.GLOBAL_STATE_TRACKER).clear()
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        deterministic = is_deterministic()
        seed = context.global_seed()
        draws = copy.copy(getattr(context.context(), "_rng", None))  # absent before the first seed
    return State(found, seed, draws, deterministic, config)


def put_state_back(state: State) -> None:
    """Restores the state that `take_state` returned in the same thread, except determinism."""
    if "keras" in sys.modules:
        from keras.src.backend.common import global_state

        vars(global_state.GLOBAL_STATE_TRACKER).clear()
        vars(global_state.GLOBAL_STATE_TRACKER).update(state.keras)
        for config in [state.config] if state.config else _imported:
            _set_config(config)
        _imported.clear()
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        context.context()._seed = state.seed
        if state.draws is not None:
            context.context()._rng = state.draws
