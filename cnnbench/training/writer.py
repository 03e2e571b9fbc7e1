"""Writes checkpoints in the background while training continues."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cnnbench.runs.checkpoint import MAX_PENDING


class Writer:
    """Runs writes in a background thread, in the order in which they were submitted.

    seconds: total time that writing blocked the caller.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._failed = False
        self._pool = ThreadPoolExecutor(1, "cnnbench-write")
        self._pending: collections.deque[Future[None]] = collections.deque()

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Queues a call of `write`, and blocks while MAX_PENDING writes are pending.

        Raises:
            RunError: an earlier write failed.
        """
        while len(self._pending) >= MAX_PENDING:
            self._finish_first()
        self._pending.append(self._pool.submit(self._write, write, *arguments))

    def check(self) -> None:
        """Raises the RunError of a failed write, if any, without blocking."""
        while self._pending and self._pending[0].done():
            self._finish_first()

    def wait(self) -> None:
        """Waits until all submitted writes are done.

        Raises:
            RunError: a write failed.
        """
        while self._pending:
            self._finish_first()

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        """Runs a write, unless an earlier one failed: later writes depend on earlier ones."""
        if not self._failed:
            self._failed = True
            write(*arguments)
            self._failed = False

    def _finish_first(self) -> None:
        with self.counted():
            self._pending.popleft().result()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Adds the time spent inside the context to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()
        self._pool.shutdown()


def schedule(every: int | str, first_step: int) -> Callable[[int], bool]:
    """Returns a function from a step to whether a checkpoint is due.

    Args:
        every: steps between checkpoints, or minutes such as "10m".
        first_step: the step that training starts or resumes at.
    """
    last_step, last_time = first_step, time.monotonic()

    def due(step: int) -> bool:
        nonlocal last_step, last_time
        now = time.monotonic()
        if isinstance(every, int):
            is_due = step // every > last_step // every
        else:
            is_due = now - last_time >= 60 * int(every.removesuffix("m"))
        if is_due:
            last_step, last_time = step, now
        return is_due

    return due
