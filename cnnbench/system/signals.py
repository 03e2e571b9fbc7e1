"""Deferred handling of SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Catcher:
    """Records the first signal and restores the previous handler for the next one."""

    def __init__(self) -> None:
        self.came: set[int] = set()
        self.before: dict[int, Any] = {}

    def handle(self, number: int, frame: Any) -> None:
        self.came.add(number)
        if (outer := self.outer(number)) is not None:
            outer.handle(number, frame)
        else:
            signal.signal(number, self.before[number])

    def outer(self, number: int) -> _Catcher | None:
        """Returns the catcher that encloses this one, if any."""
        owner = getattr(self.before[number], "__self__", None)
        return owner if isinstance(owner, _Catcher) else None


@contextmanager
def caught() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGINT or SIGTERM was received.

    A second signal is handled as usual. Contexts can be nested; an inner one also notifies the
    outer one.
    """
    catcher = _Catcher()
    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            catcher.before[number] = signal.getsignal(number)
            signal.signal(number, catcher.handle)
    except ValueError:  # not the main thread, which alone can set handlers
        catcher.before.clear()
    try:
        yield lambda: bool(catcher.came)
    finally:
        for number, handler in catcher.before.items():
            # After a signal, do not reinstall the outer catcher: the next one acts as usual.
            if not (number in catcher.came and catcher.outer(number)):
                signal.signal(number, handler)
