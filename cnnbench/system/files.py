"""Files and folders that appear whole under their final name, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnbench.errors import RunError

OLD = ".old"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields an empty neighbour that becomes `path` if all goes well, on the disk before it does.

    Raises:
        RunError: the disk refuses; what was at `path` before is still there.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:  # Ctrl-C too: cleaned up, and raised again
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, as `new_file` does."""
    with new_file(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path`, in place of what was there, if all goes well.

    Raises:
        RunError: the disk refuses; what was at `path` before is still there.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield partial
            for file in partial.rglob("*"):
                with file.open("rb") if file.is_file() else contextlib.nullcontext() as opened:
                    if opened is not None:
                        os.fsync(opened.fileno())
                    else:
                        sync_folder(file)
            sync_folder(partial)
            partial.chmod(0o755)
            old = partial.with_name(f"{partial.name}{OLD}")
            if path.exists():
                path.rename(old)
            try:
                partial.rename(path)
            except OSError:
                with contextlib.suppress(OSError):  # there was none, or `recover` puts it back
                    old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:  # Ctrl-C too: cleaned up, and raised again
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


def recover(path: Path) -> None:
    """Puts back what a process that was killed while it replaced a folder had moved aside."""
    found = leftovers(path)
    for other in found:
        if other.name.endswith(OLD) and not path.exists():
            other.rename(path)
    for other in found:
        shutil.rmtree(other, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """Returns what a process that was killed while it made a file or a folder left beside it."""
    # Not of another whose name begins as this one's does.
    mine = re.compile(rf"\.{re.escape(path.name)}\.[^.]+({re.escape(OLD)})?")
    return [other for other in path.parent.glob(f".{path.name}.*") if mine.fullmatch(other.name)]


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object of JSON with its SHA-256 as "sha256", so that any change shows."""
    digest = hashlib.sha256(json.dumps(dict(body), sort_keys=True).encode()).hexdigest()
    return {**body, "sha256": digest}


def is_as_signed(value: Mapping[str, Any]) -> bool:
    """Tells whether an object is still what `signed` returned."""
    body = {key: each for key, each in value.items() if key != "sha256"}
    return signed(body) == value


def cache_folder(kind: str) -> Path:
    """Returns where things of a kind that can be made again are kept, for all runs of a user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cnnbench" / kind


def sync_folder(path: Path) -> None:
    """Brings a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal into a RunError that names the path."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write: {error.strerror or error}", where=str(error.filename or path)
        ) from error
