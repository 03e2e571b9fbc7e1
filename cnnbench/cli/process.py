"""The process that the command line owns: its environment, its output and its unexpected errors."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path

from cnnbench.system import files

# What changes Keras or TensorFlow where a recipe decides, as on determinism, or ends the process at
# a value that is none.
UNSET = (
    *("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED"),
    *("TF_CUDNN_DETERMINISTIC", "TF_DETERMINISTIC_OPS"),
)


def own() -> None:
    """Makes this process, and those that it starts, independent of the user's settings.

    Keras uses TensorFlow and ignores ~/.keras/keras.json, whose float type, epsilon and layout of
    images change results. Matplotlib draws without a display. Characters that the encoding of the
    output lacks are escaped.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["KERAS_HOME"] = str(files.cache_folder("keras"))
    os.environ["MPLBACKEND"] = "agg"
    for name in UNSET:
        os.environ.pop(name, None)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not those that a test puts in their place
            stream.reconfigure(errors="backslashreplace")


def report(error: Exception) -> str:
    """Keeps the traceback of an unexpected error in a file.

    Returns:
        What happened, to which file if the error names one, and where the traceback is.
    """
    what = _of_system(error) if isinstance(error, OSError) else _first_line(error)
    trace = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="cnnbench-error-", suffix=".txt")
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            file.write(f"{' '.join(sys.argv)}\n\n{trace}")
    except OSError:  # no folder for temporary files, or no space in it
        return f"{what}\n{trace}"
    return f"{what}; unexpected: the traceback is in {Path(name)}"


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _of_system(error: OSError) -> str:
    reason = error.strerror or _first_line(error)
    return f"{error.filename}: {reason}" if error.filename else reason
