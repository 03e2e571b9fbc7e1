"""Definition and discovery of export formats.

A format is a module of this folder with `FORMAT` (a Format), `write(request, folder)` and
`load(path)`. Importing it must import neither a runtime nor TensorFlow, so that a process that
measures a runtime has nothing else in memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np

from cnnbench.errors import UsageError

# Files that cnnbench writes next to those of the format.
ABOUT = ("metadata.json", "verify.json", "eval.json", "eval-validation.json", "explain.json")
# Precisions whose activation ranges are computed from images.
CALIBRATED = ("int8", "int16x8")


@dataclass(frozen=True)
class Format:
    """A format that a trained network can be exported to.

    title: name to show.
    file: name of the file that the runtime opens; "" if it opens the folder.
    help: help text of its command-line option.
    precisions: supported precisions.
    packages: required packages, by import name; the extra named after the format installs them.
    varies: why two exports of a network differ in their bytes; None if they are identical.
    """

    title: str
    file: str
    help: str
    precisions: tuple[str, ...] = ("float32",)
    packages: tuple[str, ...] = ()
    varies: str | None = None


@dataclass(frozen=True)
class Loaded:
    """An artifact opened in its runtime.

    run: maps (batch, height, width, channels) images to the outputs by name, float32.
    takes_pixels: whether it takes uint8 pixels; if not, it takes float32 normalized images.
    batch: the only batch size that `run` takes; None: any.
    resized: returns a function like `run` for another batch size; None if the artifact does not
        allow that size.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    takes_pixels: bool
    batch: int | None = None
    resized: Callable[[int], Callable[[np.ndarray], dict[str, np.ndarray]] | None] = lambda size: (
        None
    )


@cache
def known_formats() -> Mapping[str, Format]:
    """Returns the formats by name, which is the name of their module."""
    folder = str(Path(__file__).parent)
    modules = {found.name: module_of(found.name) for found in pkgutil.iter_modules([folder])}
    return MappingProxyType(
        {name: module.FORMAT for name, module in modules.items() if hasattr(module, "FORMAT")}
    )


def usable(outputs: Mapping[str, Any], images: int) -> dict[str, np.ndarray]:
    """Returns the numeric outputs that have a row for each image, as float32.

    A file of another writer may have others besides, such as names of classes or a scalar.

    Args:
        outputs: of a runtime, by name.
        images: the number of images.
    """
    arrays = {name: np.asarray(values) for name, values in outputs.items()}
    return {
        name: array.astype(np.float32, copy=False)
        for name, array in arrays.items()
        if array.dtype.kind in "fiu" and array.ndim > 0 and len(array) == images
    }


def module_of(form: str) -> ModuleType:
    """Imports the module of a format."""
    return importlib.import_module(f"{__package__}.{form}")


def require(form: str) -> None:
    """Checks that the packages of a format are installed.

    Raises:
        UsageError: one is missing; the message has the command that installs them.
    """
    about = known_formats()[form]
    missing = [name for name in about.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{about.title} needs {', '.join(missing)}", allowed=f"pip install 'cnnbench[{form}]'"
        )


def format_of(path: Path) -> tuple[str, Path]:
    """Returns the format of an artifact, and the path that its runtime opens.

    Args:
        path: the file, or the folder that contains it.

    Raises:
        UsageError: the path does not exist or has no known format.
    """
    files = {form: about.file for form, about in known_formats().items() if about.file}
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "saved_model", path
        found = [(form, path / file) for form, file in files.items() if (path / file).is_file()]
        if len(found) == 1:
            return found[0]
    suffixes = {Path(file).suffix: form for form, file in files.items()}
    if path.is_file() and path.suffix in suffixes:
        return suffixes[path.suffix], path
    raise UsageError(
        "not an artifact" if path.exists() else "no such file",
        where=str(path),
        allowed=f"must be a file *{', *'.join(suffixes)}, or the folder of a SavedModel",
    )


def files_of(folder: Path) -> list[Path]:
    """Returns the files of an artifact's folder, without those named in ABOUT."""
    about = {folder / name for name in ABOUT}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in about]
