"""The lock file that keeps two processes from writing to one run."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from cnnbench.errors import RunError


def _open_lock(file: Path) -> int:
    # Not through a link, which could lead to any file of the user.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(file, flags, 0o644)


def _is_at(handle: int, file: Path) -> bool:
    """Tells whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def _hold(lock: int, path: Path) -> None:
    """Locks an open file for as long as it is open."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 100, 0).decode(errors="replace").strip() or "unknown"
        raise RunError(f"another process ({holder}) writes to this run", where=str(path)) from None
    with contextlib.suppress(OSError):  # who holds it is told as a courtesy
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()}".encode())
