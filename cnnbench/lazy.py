"""TensorFlow and Keras, imported when one of their attributes is first used.

Importing them takes seconds, and the threads, the log level and the kernels that TensorFlow uses
are chosen by environment variables that it reads once. So the command line and the checks of a
recipe run without them, and `cnnbench.runtime` speaks first.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _LazyModule(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        module = sys.modules.get(self.__name__) or importlib.import_module(self.__name__)
        return getattr(module, attribute)


if TYPE_CHECKING:
    import keras
    import tensorflow as tf
else:
    keras = _LazyModule("keras")
    tf = _LazyModule("tensorflow")

__all__ = ["keras", "tf"]
