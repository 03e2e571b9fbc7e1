"""Signals that ask a process to end, noticed where it suits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Catcher:
    """Remembers that a signal came, and lets the next one act as usual."""

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
        """Returns the one around this one."""
        owner = getattr(self.before[number], "__self__", None)
        return owner if isinstance(owner, _Catcher) else None


@contextmanager
def caught() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; a second one acts as usual.

    One inside another tells the outer one too.
    """
    catcher = _Catcher()
    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            catcher.before[number] = signal.getsignal(number)
            signal.signal(number, catcher.handle)
    except ValueError:  # not the main thread: signals go to whoever has it
        catcher.before.clear()
    try:
        yield lambda: bool(catcher.came)
    finally:
        for number, handler in catcher.before.items():
            # An outer one that was told is not to take the second signal.
            if not (number in catcher.came and catcher.outer(number)):
                signal.signal(number, handler)
