"""How the C library manages the memory of the process."""

from __future__ import annotations

import contextlib
import ctypes

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h: the free bytes above which the heap is trimmed,
# and the block size from which memory is mapped separately.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory, because every training step allocates the same blocks again.

    By default, glibc returns large blocks to the operating system, which must map and zero each
    page again. Has no effect with other C libraries. The setting applies to the whole process and
    cannot be undone, so only the command line and cnnbench's own workers call this function.
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library, or one without mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 2**30)
