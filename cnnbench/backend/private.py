"""Private names of TensorFlow and Keras, each behind a function that says why it is needed.

No other module may use such names. An upgrade that moves one of them breaks its test in
tests/backend/test_private.py and is repaired here. Functions that may be the first to need
TensorFlow or Keras load them as `lazy` does, without their messages.
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

if TYPE_CHECKING:
    import numpy as np

# TensorFlow


def uses_onednn() -> bool:
    """Tells whether TensorFlow uses oneDNN's kernels on the CPU.

    TF_ENABLE_ONEDNN_OPTS is a wish: the default depends on the CPU and the build, and `tf.config`
    and `tf.sysconfig` do not report what came of it.
    """
    load()
    from tensorflow.python.util import _pywrap_util_port

    return bool(_pywrap_util_port.IsMklEnabled())


def is_compiled_by_xla() -> bool:
    """Tells whether the function that is being traced is for XLA.

    `jit_compile` belongs to the caller of the traced function; the public API does not pass it on
    to the code inside.
    """
    from tensorflow.python.ops import control_flow_util

    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def record_reader(file: str) -> Any:
    """Returns a reader of a TFRecord file: `read(offset)` gives a record and the next offset.

    The public readers, `tf.data.TFRecordDataset` and `tf.compat.v1.io.tf_record_iterator`, read
    from the beginning.
    """
    from tensorflow.python.lib.io.tf_record import tf_record_random_reader

    return tf_record_random_reader(file)


def read_trace(file: Path) -> Any:
    """Returns the planes, lines and events of an .xplane.pb file of TensorFlow's profiler.

    `tf.profiler` writes the file; to read it, the package has the protocol buffer alone.
    """
    load()
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2.XSpace.FromString(file.read_bytes())


def disable_determinism() -> None:
    """Undoes `tf.config.experimental.enable_op_determinism`, which has no public counterpart."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()


def is_deterministic() -> bool:
    """Tells whether `tf.config.experimental.enable_op_determinism` is in force.

    TensorFlow has a public name to switch it on and none to ask for it.
    """
    from tensorflow.python.framework import config

    return bool(config.is_op_determinism_enabled())


def clear_kernels() -> None:
    """Forgets the kernels made for eager operations, so that the next call makes them anew.

    The public `keras.utils.clear_session` does so too, but also replaces the default graph and
    Keras's state in every thread.
    """
    from tensorflow.python.eager import context

    context.context().clear_kernel_cache()


def seed_tensorflow(seed: int) -> None:
    """Does what `tf.random.set_seed` does, except that it keeps the kernels of eager operations.

    These hold the positions of random operations with a seed of their own, which would start over.
    No operation of cnnbench draws from a kernel: all are stateless.
    """
    load()
    from tensorflow.python.eager import context

    context.context()._seed = seed
    context.context()._rng = random.Random(seed)  # noqa: S311 - as TensorFlow does


# TensorFlow Lite


def quantize(content: bytes, **options: Any) -> bytes:
    """Returns a calibrated TFLite file in integers.

    `tf.lite.TFLiteConverter` does this as its last step and has no options to keep layers in
    float, or to verify each layer.

    Args:
        content: a float32 file whose tensors have their ranges.
        **options: of TensorFlow's `mlir_quantize`.
    """
    from tensorflow.lite.python.convert import mlir_quantize

    return bytes(mlir_quantize(content, **options))


def calibrate_only(converter: Any) -> None:
    """Has a `tf.lite.TFLiteConverter` stop once the ranges are known, before it quantizes.

    Publicly, a converter returns the quantized file alone.
    """
    converter._experimental_calibrate_only = True


def calibrate(content: bytes, images: Sequence[list[np.ndarray]]) -> bytes:
    """Returns a float32 TFLite file with the ranges that its tensors have on some images.

    A public converter calibrates on all of its images at once, and so has no ranges by batch.

    Args:
        content: a float32 file.
        images: each as the list of the file's inputs.
    """
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    return bytes(Calibrator(content).calibrate(lambda: images))


def converter_error() -> type[Exception]:
    """Returns the error that `tf.lite.TFLiteConverter.convert` raises, which `tf.lite` lacks."""
    from tensorflow.lite.python.convert_phase import ConverterError

    return ConverterError


# Keras


def maker_of(tensor: Any) -> Any:
    """Returns the layer or operation whose output a symbolic Keras tensor is.

    Keras exports `keras.utils.get_source_inputs`, which goes back to the inputs of the model, and
    nothing for one step.
    """
    return tensor._keras_history.operation


def variable_index(optimizer: Any, variable: Any) -> int:
    """Returns the place of a variable among those an optimizer was built for.

    A subclass overrides `update_step`, which is told the variable and not its place.
    """
    return int(optimizer._get_variable_index(variable))


def seed_keras(seed: int) -> None:
    """Gives Keras in this thread the state of `clear_session` and then `set_random_seed`.

    Layers are numbered from the start, the dtype policy is the default, and the global generator
    begins with the seed. The public functions also reset the other threads, the default graph and
    the kernels of TensorFlow, all of which may be in use by whoever calls cnnbench.
    """
    load("keras")
    from keras.src.backend.common import global_state
    from keras.src.utils import rng_utils

    vars(global_state.GLOBAL_STATE_TRACKER).clear()  # a threading.local: this thread's alone
    global_state.set_global_attribute(rng_utils.GLOBAL_RANDOM_SEED, seed)


# TensorFlow and Keras


@dataclass(frozen=True)
class State:
    """What a seed, building models and `enable_op_determinism` change; by default, as imported.

    keras: Keras's state of this thread: counters of names, dtype policy, seed, generator.
    seed: TensorFlow's global seed; None: not set.
    draws: what gives operations without a seed of their own their seeds.
    deterministic: whether operations are deterministic.
    """

    keras: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    draws: random.Random | None = None
    deterministic: bool = False


def take_state() -> State:
    """Returns the state of TensorFlow and Keras, and lets Keras begin with a fresh one.

    Publicly, the seeds and counters can be set and not read. Neither package is imported.
    """
    found, seed, draws, deterministic = {}, None, None, False
    if "keras" in sys.modules:
        from keras.src.backend.common import global_state

        found = dict(vars(global_state.GLOBAL_STATE_TRACKER))
        vars(global_state.GLOBAL_STATE_TRACKER).clear()
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        deterministic = is_deterministic()
        seed = context.global_seed()
        draws = copy.copy(getattr(context.context(), "_rng", None))  # absent before the first seed
    return State(found, seed, draws, deterministic)


def put_state_back(state: State) -> None:
    """Restores what `take_state` returned, determinism aside, in the same thread."""
    if "keras" in sys.modules:
        from keras.src.backend.common import global_state

        vars(global_state.GLOBAL_STATE_TRACKER).clear()
        vars(global_state.GLOBAL_STATE_TRACKER).update(state.keras)
    if "tensorflow" in sys.modules:
        from tensorflow.python.eager import context

        context.context()._seed = state.seed
        if state.draws is not None:
            context.context()._rng = state.draws
