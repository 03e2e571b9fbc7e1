"""Signals that ask a process to end, noticed where it suits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def caught() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; a second one acts as usual."""
    came: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals go to whoever has it
        before.clear()
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
