"""Export formats: what one is, and finding those that there are.

A format is a module of this folder with `FORMAT`, a Format, `write(request, folder)` and
`load(path)`. Importing it imports no run-time and no TensorFlow, so that a process that measures a
run-time has nothing else in its memory.
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

import numpy as np

from cnnbench.errors import UsageError

# What `export` writes beside the files of a format.
ABOUT = ("metadata.json", "verify.json", "eval.json", "eval-validation.json", "explain.json")
# Precisions whose ranges of activations are computed from images.
CALIBRATED = ("int8", "int16x8")


@dataclass(frozen=True)
class Format:
    """A format that a trained network can be written in.

    title: what people call it.
    file: what its run-time opens, in the folder; "" is the folder itself.
    help: of its option on the command line.
    precisions: those it can have.
    packages: what it needs, by the names they are imported by; they are in the extra of the
        format's own name.
    varies: why two exports of one network differ in their bytes; None where they are the same.
    """

    title: str
    file: str
    help: str
    precisions: tuple[str, ...] = ("float32",)
    packages: tuple[str, ...] = ()
    varies: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A file in its run-time.

    run: from (batch, height, width, channels) to its outputs by their names, float32.
    takes_pixels: whether that is uint8 pixels, or float32 normalised images.
    batch: the only batch size that `run` takes; None: any.
    resized: returns what runs another batch size, or None if the file does not allow it.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    takes_pixels: bool
    batch: int | None = None
    resized: Callable[[int], Callable[[np.ndarray], dict[str, np.ndarray]] | None] = lambda size: (
        None
    )


@cache
def known_formats() -> Mapping[str, Format]:
    """Returns every format by its name, which is that of its module."""
    folder = str(Path(__file__).parent)
    modules = {found.name: module_of(found.name) for found in pkgutil.iter_modules([folder])}
    return MappingProxyType(
        {name: module.FORMAT for name, module in modules.items() if hasattr(module, "FORMAT")}
    )


def module_of(form: str) -> ModuleType:
    """Imports the module of a format."""
    return importlib.import_module(f"{__package__}.{form}")


def require(form: str) -> None:
    """Refuses a format whose packages are not installed.

    Raises:
        UsageError: the message has the line that installs them.
    """
    about = known_formats()[form]
    missing = [name for name in about.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{about.title} needs {', '.join(missing)}", allowed=f"pip install 'cnnbench[{form}]'"
        )


def format_of(path: Path) -> tuple[str, Path]:
    """Returns the format of an exported file, and what its run-time opens.

    Args:
        path: the file, or the folder it lies in.

    Raises:
        UsageError: there is no such file, or it is of no format.
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
        "no artifact" if path.exists() else "there is no such file",
        where=str(path),
        allowed=f"a file *{', *'.join(suffixes)}, or the folder of a SavedModel",
    )


def files_of(folder: Path) -> list[Path]:
    """Returns the files of a format in a folder, without what is written about them."""
    about = {folder / name for name in ABOUT}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in about]
