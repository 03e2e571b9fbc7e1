"""Lock files: one process at a time, until it closes the file or dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def open_lock(file: Path) -> int:
    """Returns a handle of a lock file, which is created if there is none.

    Raises:
        OSError: it cannot be opened, or is a link.
    """
    # Not through a link, which could lead to any file of the user.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(file, flags, 0o666)


def is_at(handle: int, file: Path) -> bool:
    """Tells whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def lock(handle: int, on_held: Callable[[str], None]) -> None:
    """Locks an open file for as long as it is open; the kernel frees the lock of a dead process.

    Args:
        handle: from `open_lock`.
        on_held: called where another process holds the lock, with who that is, such as "pid 12".
            It raises an error, or else the lock is waited for.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_held(os.pread(handle, 100, 0).decode(errors="replace").strip() or "unknown")
        fcntl.flock(handle, fcntl.LOCK_EX)
    with contextlib.suppress(OSError):  # who holds it is told as a courtesy
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()}".encode())
