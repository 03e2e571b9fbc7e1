"""Work on many items in threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Items that a thread works on, one after the other: a task for each would take memory for all.
AT_ONCE = 64


def for_each(work: Callable[[int], None], count: int) -> None:
    """Calls `work` with 0 to `count` - 1, on all cores.

    Args:
        work: the function; what it raises is raised here.
        count: number of items.
    """

    def some(start: int) -> None:
        for index in range(start, min(start + AT_ONCE, count)):
            work(index)

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        for _ in pool.map(some, range(0, count, AT_ONCE)):
            pass  # raises what a thread has raised
