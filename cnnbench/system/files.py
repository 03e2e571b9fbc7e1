"""Atomic writes of files and folders, hashes, and the cache directory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnbench.errors import RunError

# Suffix of a folder that `new_folder` has moved aside.
OLD = ".old"
# What the system answers to a write that is not permitted.
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
# What file systems answer to an operation that they lack (CIFS, FUSE, Lustre).
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields an empty temporary file, which is flushed to disk and renamed to `path` on success.

    Raises:
        RunError: the file cannot be written; an existing file at `path` is unchanged.
    """
    partial = _beside(path)
    with storage_errors(path, hidden=partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        try:
            yield partial
            _set_mode(partial, mode)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:  # also Ctrl-C: clean up, then re-raise
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    with new_file(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def keep_json(path: Path, value: Any) -> str | None:
    """Writes a JSON file, unless the folder may not be written to.

    Returns:
        None, or a line that says that the file was not kept, and why.

    Raises:
        RunError: it cannot be written for another reason, such as a full disk.
    """
    try:
        write_json(path, value)
    except RunError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in READ_ONLY:
            raise
        return f"{path} was not written: {cause.strerror}"
    return None


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, which is flushed to disk and replaces `path` on success.

    Raises:
        RunError: the folder cannot be written; an existing folder at `path` is unchanged.
    """
    partial = _beside(path)
    with storage_errors(path, hidden=partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        mode = partial.stat().st_mode
        try:
            yield partial
            for file in partial.rglob("*"):
                _set_mode(file, mode if file.is_dir() else mode & 0o666)
                with file.open("rb") if file.is_file() else contextlib.nullcontext() as opened:
                    if opened is not None:
                        os.fsync(opened.fileno())
                    else:
                        sync_folder(file)
            sync_folder(partial)
            old = partial.with_name(f"{partial.name}{OLD}")
            if path.exists():
                path.rename(old)
            try:
                partial.rename(path)
            except OSError:
                with contextlib.suppress(OSError):  # nothing to restore, or left to `recover`
                    old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:  # also Ctrl-C: clean up, then re-raise
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


def _set_mode(path: Path, mode: int) -> None:
    """Sets permissions to those of the umask; libraries that write files may set their own."""
    if stat.S_IMODE(path.stat().st_mode) != stat.S_IMODE(mode):
        with contextlib.suppress(PermissionError):  # a file system without permissions
            path.chmod(stat.S_IMODE(mode))


def _beside(path: Path) -> Path:
    """Returns a new hidden name next to `path`, which `leftovers` finds."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}")


def copy_tree(source: Path, folder: Path) -> None:
    """Copies what is in one folder into another, without the permissions and times."""
    for entry in source.iterdir():
        target = folder / entry.name
        if entry.is_dir():
            target.mkdir()
            copy_tree(entry, target)
        else:
            shutil.copyfile(entry, target)


def recover(path: Path) -> None:
    """Restores a folder whose replacement was interrupted because the process was killed."""
    found = leftovers(path)
    for other in found:
        if other.name.endswith(OLD) and not path.exists():
            other.rename(path)
    for other in found:
        shutil.rmtree(other, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """Returns temporary files and folders left next to `path` by a process that was killed."""
    # The full match excludes those of other paths whose names start the same way.
    mine = re.compile(rf"\.{re.escape(path.name)}\.[^.]+({re.escape(OLD)})?")
    return [other for other in path.parent.glob(f".{path.name}.*") if mine.fullmatch(other.name)]


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its own SHA-256 added as "sha256", to detect changes."""
    digest = hashlib.sha256(json.dumps(dict(body), sort_keys=True).encode()).hexdigest()
    return {**body, "sha256": digest}


def is_as_signed(value: Mapping[str, Any]) -> bool:
    """Returns whether an object is unchanged since `signed` returned it."""
    body = {key: item for key, item in value.items() if key != "sha256"}
    return signed(body) == value


def expanded(path: str | Path) -> Path:
    """Returns a path with `~` replaced by the home folder; variables such as $HOME are text.

    A user that does not exist, as in ~nobody/x, is part of the name.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for such a user


def cache_folder(kind: str) -> Path:
    """Returns the user's cache folder for one kind of data that can be recreated.

    A relative XDG_CACHE_HOME is ignored, as its specification demands. A user without a home
    folder, as in a container with a user number of its own, has one among the temporary files.
    """
    for place in (os.environ.get("XDG_CACHE_HOME", ""), "~/.cache"):
        if (folder := expanded(place)).is_absolute():
            return folder / "cnnbench" / kind
    return Path(tempfile.gettempdir(), f"cnnbench-{os.getuid()}") / kind


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to disk, on file systems that can do so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "write", hidden: Path | None = None) -> Iterator[None]:
    """Converts an OSError into a RunError that names the path and what could not be done.

    Args:
        path: what is named if the error names no file.
        doing: what could not be done.
        hidden: a temporary path, in place of which `path` is named.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        where = str(path if named in (None, str(hidden)) else named)
        raise RunError(f"cannot {doing}: {why(error)}", where=where) from error


def why(error: Exception) -> str:
    """Returns what an error says, without the number and the path of an error of the system."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__
