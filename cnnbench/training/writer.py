"""Writes checkpoints in the background while training continues."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cnnbench.runs.checkpoint import AHEAD


class Writer:
    """Writes in the background, one thing after the other, in the order in which it was told.

    seconds: that it kept the caller from its work, all in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._failed = False
        self._pool = ThreadPoolExecutor(1, "cnnbench-write")
        self._pending: collections.deque[Future[None]] = collections.deque()

    def submit(self, write: Callable[..., None], *arguments: Any) -> None:
        """Has `write` called with the arguments, once what was told before is done.

        Raises:
            RunError: the disk refused something that was told before.
        """
        while len(self._pending) >= AHEAD:
            self._finish_first()
        self._pending.append(self._pool.submit(self._write, write, *arguments))

    def check(self) -> None:
        """Raises the RunError of what failed since it was told, and does not wait."""
        while self._pending and self._pending[0].done():
            self._finish_first()

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            RunError: the disk refuses.
        """
        while self._pending:
            self._finish_first()

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        """Writes, unless something before failed: what comes later counts on it."""
        if not self._failed:
            self._failed = True
            write(*arguments)
            self._failed = False

    def _finish_first(self) -> None:
        with self.counted():
            self._pending.popleft().result()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what is done within as time that writing took."""
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
    """Returns a function that says whether to save at a step, by steps or by minutes."""
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
