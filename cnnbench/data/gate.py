"""Ends the Python functions that threads of TensorFlow call."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

# How long no call must come for all threads to be taken as stopped, and to wait for it at most.
QUIET_SECONDS = 0.05
MOST_SECONDS = 10.0


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


class Gate:
    """Lets guarded functions run until it is closed, at the latest when the interpreter ends.

    A thread of TensorFlow that is in Python, or waits to be, when the interpreter ends would never
    end, and nor would the process.
    """

    def __init__(self) -> None:
        _gates.add(self)
        self._changed = threading.Condition()
        self._is_open, self._running, self._last = True, 0, time.monotonic()

    def guarded(self, work: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that calls `work`, or `instead` once the gate is closed."""

        def run(*arguments: Any) -> Any:
            with self._changed:
                self._running += 1
            try:
                return work(*arguments) if self._is_open else instead(*arguments)
            finally:
                with self._changed:
                    self._running -= 1
                    self._last = time.monotonic()
                    self._changed.notify_all()

        return run

    def close(self) -> None:
        """Closes the gate and waits until no guarded function runs and none is called any more.

        TensorFlow's threads go on until their buffers are full, which takes a few calls.
        """
        self._is_open = False
        end = time.monotonic() + MOST_SECONDS
        with self._changed:
            while (now := time.monotonic()) < end:
                quiet = now - self._last
                if not self._running and quiet >= QUIET_SECONDS:
                    return
                self._changed.wait(end - now if self._running else QUIET_SECONDS - quiet)


@atexit.register
def _close_all() -> None:
    for gate in list(_gates):
        gate.close()
