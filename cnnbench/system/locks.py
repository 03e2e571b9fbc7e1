"""Lock files, held by one process until it closes the file or exits."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from cnnbench.system.files import UNSUPPORTED


def open_lock(file: Path) -> int:
    """Opens a lock file, creating it if needed.

    Returns:
        A file descriptor.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link.
    """
    # O_NOFOLLOW: a symbolic link could point to any of the user's files.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(file, flags, 0o666)


def is_at(handle: int, file: Path) -> bool:
    """Returns whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def lock(handle: int, on_held: Callable[[str], None]) -> bool:
    """Locks an open file until it is closed; the kernel releases the lock when the process exits.

    Args:
        handle: file descriptor from `open_lock`.
        on_held: called with the holder, such as "pid 12", if another process holds the lock. If it
            does not raise an error, `lock` waits until the lock is free.

    Returns:
        Whether the file is locked; False on a file system without locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_held(os.pread(handle, 100, 0).decode(errors="replace").strip() or "unknown")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    with contextlib.suppress(OSError):  # the holder's pid is only informative
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()}".encode())
    return True
