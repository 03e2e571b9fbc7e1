"""Lazy imports of TensorFlow and Keras, on first attribute access.

Importing them takes seconds, and TensorFlow reads the environment variables that select threads,
log level and kernels only once. So the command line and the recipe checks run without them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cnnbench.errors import CnnbenchError, RunError, UsageError


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        return getattr(sys.modules.get(self.__name__) or load(self.__name__), attribute)


def load(name: str = "tensorflow") -> ModuleType:
    """Imports TensorFlow or Keras without the messages that their libraries print at import.

    If this is the first import of TensorFlow, TensorFlow and TFDS log only errors from then on.
    TF_CPP_MIN_LOG_LEVEL and KERAS_BACKEND are set if unset, and stay set for child processes.

    Raises:
        UsageError: KERAS_BACKEND is another than TensorFlow.
    """
    if name in sys.modules:
        return sys.modules[name]
    is_first = "tensorflow" not in sys.modules
    if is_first:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        if backend != "tensorflow":
            raise UsageError(f"KERAS_BACKEND is {backend!r}", allowed="must be tensorflow or unset")
    with quiet():
        module = importlib.import_module(name)
        if is_first:
            tensorflow = importlib.import_module("tensorflow")
            tensorflow.config.list_physical_devices()
            tensorflow.get_logger().setLevel("ERROR")
            importlib.import_module("absl.logging").set_verbosity("error")
    if name == "keras":
        importlib.import_module("cnnbench.backend.private").own_config()
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides library output on stderr that no setting silences; shows it if an error is raised."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            yield
        except CnnbenchError:  # its own message suffices
            raise
        except BaseException:  # also Ctrl-C: show the output, then re-raise
            messages.seek(0)
            os.write(stderr, messages.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def tensorflow_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Converts an error of TensorFlow into a RunError that names the path and what was not done."""
    try:
        yield
    except tf.errors.OpError as error:
        what = error.message.splitlines()[0]
        raise RunError(f"cannot {doing}: {what}", where=str(path)) from None


if TYPE_CHECKING:
    import keras
    import tensorflow as tf
else:
    keras = _LazyModule("keras")
    tf = _LazyModule("tensorflow")

__all__ = ["keras", "quiet", "tensorflow_errors", "tf"]
