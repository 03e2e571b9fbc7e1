"""Artifacts: a trained network as a file of another tool, each format opened by its own run-time.

A format is a row of FORMATS and a module of that name here, with `write(request, folder)` and
`load(path)`. Importing this package and a format's module imports no run-time and no TensorFlow, so
that a process that measures a run-time has nothing else in its memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from cnnbench.errors import UsageError
from cnnbench.exports.options import PRECISIONS

if TYPE_CHECKING:
    pass

# What `export` writes beside an artifact; all else in its folder is the artifact.
ABOUT = ("metadata.json", "verify.json", "eval.json", "eval-validation.json", "explain.json")


@dataclass(frozen=True)
class Format:
    """A kind of artifact.

    title: what people call it.
    file: what its run-time opens; "" is the folder itself.
    precisions: those it can have.
    packages: what it needs, by the names they are installed and imported by; they are in the extra
        of the format's own name.
    varies: why two exports of one network differ in their bytes; None where they are the same.
    """

    title: str
    file: str
    precisions: tuple[str, ...] = ("float32",)
    packages: tuple[str, ...] = ()
    varies: str | None = None


FORMATS: Mapping[str, Format] = {
    "saved_model": Format(
        "TensorFlow SavedModel",
        "",
        varies="TensorFlow numbers functions by a counter of the process, and fingerprint.pb has a "
        "random number",
    ),
    "keras": Format(
        "Keras", "model.keras", varies="Keras writes the time of the export into the file"
    ),
    "tflite": Format("TFLite", "model.tflite", PRECISIONS),
    "onnx": Format(
        "ONNX", "model.onnx", ("float32", "int8"), packages=("onnx", "tf2onnx", "onnxruntime")
    ),
    "openvino": Format("OpenVINO", "model.xml", packages=("openvino",)),
}
# Those whose ranges of activations are measured on images.
CALIBRATED = ("int8", "int16x8")


@dataclass(frozen=True)
class Loaded:
    """An artifact in its run-time.

    run: from (batch, height, width, channels) to (batch, classes) float32 logits.
    takes_pixels: whether that is uint8 pixels, or float32 normalised images.
    batch: the only batch size that `run` takes; None: any.
    resized: returns what runs another batch size, or None if the file does not allow it.
    """

    run: Callable[[np.ndarray], np.ndarray]
    takes_pixels: bool
    batch: int | None = None
    resized: Callable[[int], Callable[[np.ndarray], np.ndarray] | None] = lambda size: None


def module_of(form: str) -> ModuleType:
    """Imports the module of a format."""
    return importlib.import_module(f"{__package__}.{form}")


def require(form: str) -> None:
    """Refuses a format whose packages are not installed.

    Raises:
        UsageError: the message has the line that installs them.
    """
    missing = [name for name in FORMATS[form].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{FORMATS[form].title} needs {', '.join(missing)}",
            allowed=f"pip install 'cnnbench[{form}]'",
        )


def format_of(path: Path) -> tuple[str, Path]:
    """Returns the format of an artifact, and what its run-time opens.

    Args:
        path: the file, or the folder it lies in.

    Raises:
        UsageError: there is no artifact.
    """
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "saved_model", path
        found = [(f, path / about.file) for f, about in FORMATS.items() if about.file]
        found = [(form, file) for form, file in found if file.is_file()]
        if len(found) == 1:
            return found[0]
    suffixes = {Path(about.file).suffix: form for form, about in FORMATS.items() if about.file}
    if path.is_file() and path.suffix in suffixes:
        return suffixes[path.suffix], path
    raise UsageError(
        "no artifact" if path.exists() else "there is no such file",
        where=str(path),
        allowed=f"a file *{', *'.join(suffixes)}, or the folder of a SavedModel",
    )


def files_of(folder: Path) -> list[Path]:
    """Returns the files of an artifact, without what is written about it."""
    about = {folder / name for name in ABOUT}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in about]


def output_name(names: list[str], preferred: str = "logits") -> str:
    """Returns which output is taken for the logits: the one of that name, or the only one.

    Args:
        names: of all outputs.
        preferred: "probabilities" where these are wanted in the place of logits, if they are there.

    Raises:
        ValueError: there are several of other names.
    """
    if preferred in names:
        return preferred
    likely = [name for name in ("logits", "probabilities") if name in names] or names
    if len(likely) > 1 and "logits" not in likely:
        raise ValueError(f"none of the outputs {', '.join(names)} is called logits")
    return likely[0]


def as_logits(name: str, values: np.ndarray) -> np.ndarray:
    """Returns (batch, classes) float32 logits; of probabilities, their logarithms.

    An output of another name has probabilities where its rows are such.
    """
    values = np.asarray(values, np.float32)
    are_shares = (values >= 0).all() and np.allclose(values.sum(axis=-1), 1, atol=2e-2)
    if name == "logits" or (name != "probabilities" and not are_shares):
        return values
    return np.log(np.maximum(values, 1e-30))
