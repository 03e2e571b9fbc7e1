"""TensorFlow and Keras, imported when one of their attributes is first used.

Importing them takes seconds, and the threads, the log level and the kernels that TensorFlow uses
are chosen by environment variables that it reads once. So the command line and the checks of a
recipe run without them.
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

from cnnbench.errors import CnnbenchError, RunError


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        return getattr(sys.modules.get(self.__name__) or load(self.__name__), attribute)


def load(name: str = "tensorflow") -> ModuleType:
    """Imports TensorFlow or Keras without the messages that its libraries print as they load.

    Where TensorFlow was not imported before, it and TFDS log errors alone from then on. The
    variables TF_CPP_MIN_LOG_LEVEL and KERAS_BACKEND stay set, if they were not, for processes that
    are started later.
    """
    if name in sys.modules:
        return sys.modules[name]
    is_first = "tensorflow" not in sys.modules
    if is_first:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with quiet():
        module = importlib.import_module(name)
        if is_first:
            tensorflow = importlib.import_module("tensorflow")
            tensorflow.config.list_physical_devices()
            tensorflow.get_logger().setLevel("ERROR")
            importlib.import_module("absl.logging").set_verbosity("error")
    return module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps from stderr what libraries print there and no setting silences, unless they fail."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            yield
        except CnnbenchError:  # says by itself what went wrong
            raise
        except BaseException:  # Ctrl-C too: cleaned up, and raised again
            messages.seek(0)
            os.write(stderr, messages.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def tensorflow_errors(path: Path) -> Iterator[None]:
    """Turns TensorFlow's failure to write into a RunError that names the path."""
    try:
        yield
    except tf.errors.OpError as error:
        what = error.message.splitlines()[0]
        raise RunError(f"cannot write: {what}", where=str(path)) from None


if TYPE_CHECKING:
    import keras
    import tensorflow as tf
else:
    keras = _LazyModule("keras")
    tf = _LazyModule("tensorflow")

__all__ = ["keras", "quiet", "tensorflow_errors", "tf"]
