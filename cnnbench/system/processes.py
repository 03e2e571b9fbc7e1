"""Processes that each measure one thing, a round whenever they are asked.

Some settings of TensorFlow are read once, when it is imported, and a process's peak of memory is
its own; so each thing that is measured lives in a new process. Several stand ready at the same time
and take turns, which is how a machine that others use too tells which is faster.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from cnnbench.system.measure import peak_memory_mb

# What a worker does when asked; it returns the seconds that counted.
Round = Callable[[], float]


class WorkerError(Exception):
    """A worker failed, died, or took too long; the text says which."""


class Worker:
    """A process that has built something and measures it on demand.

    Args:
        build: a function at the top of a module, called in the new process; it returns the round.
        arguments: for `build`.
        environment: variables to set before `build` is called; None unsets one.
    """

    def __init__(
        self,
        build: Callable[..., Round],
        *arguments: Any,
        environment: Mapping[str, str | None] | None = None,
    ):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, build, arguments, dict(environment or {})), daemon=True
        )
        self._process.start()
        theirs.close()

    def ready(self, timeout_s: float) -> float:
        """Waits until the thing is built; returns the seconds from the process's start till then.

        Raises:
            WorkerError: it cannot be built, or not in time.
        """
        return self._answer("build", timeout_s)

    def round(self, timeout_s: float) -> float:
        """Returns the seconds of one round.

        Raises:
            WorkerError: the process failed, died, or took longer.
        """
        return self._ask("round", timeout_s)

    def peak_memory_mb(self) -> float:
        """Returns the most memory that the process has had, in MB of 2**20 bytes."""
        return self._ask("memory", 10.0)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, timeout_s: float) -> float:
        try:
            self._connection.send(what)
        except OSError:
            raise WorkerError(f"the process ended {self._end()}") from None
        return self._answer(what, timeout_s)

    def _answer(self, what: str, timeout_s: float) -> float:
        if not self._connection.poll(timeout_s):
            raise WorkerError(f"no answer to {what!r} in {timeout_s:.0f} s")
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(f"the process ended {self._end()}") from None
        if kind == "failed":
            raise WorkerError(value)
        return value

    def _end(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        return f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"


def alternate(workers: Sequence[Worker], rounds: int, timeout_s: float) -> list[list[float]]:
    """Runs rounds of ready workers in turn; returns the seconds of each one's rounds."""
    seconds: list[list[float]] = [[] for _ in workers]
    for number in range(rounds):
        # Forwards, then backwards, so that no one always follows the same other.
        order = range(len(workers)) if number % 2 == 0 else reversed(range(len(workers)))
        for i in order:
            seconds[i].append(workers[i].round(timeout_s))
    return seconds


def _serve(
    connection: Connection,
    build: Callable[..., Round],
    arguments: Sequence[Any],
    environment: Mapping[str, str | None],
) -> None:
    start = time.perf_counter()
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        work = build(*arguments)
        connection.send(("done", time.perf_counter() - start))
        while True:
            is_round = connection.recv() == "round"
            connection.send(("done", work() if is_round else peak_memory_mb()))
    except EOFError:
        return
    except Exception as error:  # told to whoever asked, whatever it is
        connection.send(("failed", reason(error)))


def reason(error: Exception) -> str:
    """Returns an error's kind and the first line of its message that says what is wrong.

    Those of TensorFlow begin with where in a graph it is.
    """
    where = ("Graph execution error", "Detected at node", "<stack traces")
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = [line for line in lines if not line.startswith(where)] or lines
    return ": ".join([type(error).__name__, *what[:1]])
