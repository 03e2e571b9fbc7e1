"""Reading from pipes, which can be read once and may never be written to."""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path

from cnnbench.errors import DataError

# How long nothing may come from a pipe, and the most that is read of it.
SECONDS, MOST_BYTES = 30.0, 2**30


def content(path: Path, seconds: float = SECONDS) -> bytes | None:
    """Returns what comes from a pipe, such as that of a shell's `<(…)`; None if it is no pipe.

    Args:
        path: of any kind of file, or of none.
        seconds: how long nothing may come.

    Raises:
        DataError: nothing comes for so long, or too much, or it is a device or a socket.
        OSError: it cannot be read.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return None  # who opens it says why
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise DataError("is a device or a socket", where=str(path), allowed="a file or a pipe")
    if not stat.S_ISFIFO(mode):
        return None
    pieces: list[bytes] = []
    size = 0
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while select.select([handle], [], [], seconds)[0]:
            piece = os.read(handle, 2**16)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise DataError(f"more than {MOST_BYTES:,} bytes come", where=str(path))
    finally:
        os.close(handle)
    raise DataError(f"is a pipe, from which nothing came for {seconds:.0f} s", where=str(path))
