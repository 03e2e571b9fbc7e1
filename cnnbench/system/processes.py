"""Processes that each measure one thing, a round whenever they are asked.

Some settings of TensorFlow are read once, when it is imported, and a process's peak of memory is
its own; so each thing that is measured lives in a new process. Several stand ready at the same time
and take turns, which is how a machine that others use too tells which is faster.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from cnnbench.system.measure import peak_memory_mb

TIMEOUT_S = 600.0
# A process that crashes may write its memory to a file first.
ENDING_S = 30.0
# Characters of a failure that are shown.
SHOWN_CHARACTERS = 300
# Of malloc.h: how many bytes are free at least before some are returned to the system, and how many
# a block has at least that is taken from the system alone.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

# What a worker does when asked; it returns the seconds that counted.
Round = Callable[[], float]


def keep_freed_memory() -> None:
    """Has the C library keep what is freed, for the next training step asks for the same again.

    By itself, glibc returns large blocks to the system, which then hands out and clears each page
    of them anew. Other C libraries do as they do. It holds for the whole process and cannot be
    undone, so only the command line and cnnbench's own workers call it.
    """
    with contextlib.suppress(OSError, AttributeError):  # no C library, or none with mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 2**30)


class WorkerError(Exception):
    """A worker failed, died, or took too long; the text says which."""


class Child(abc.ABC):
    """A child process that answers requests over a connection, by `answer_requests`.

    It has a temporary folder of its own, which goes when it is closed: TensorFlow leaves files
    behind in a process that is killed.
    """

    _noun = "process"

    def __init__(self) -> None:
        self._connection, self._theirs = multiprocessing.Pipe()
        self._temporary = tempfile.TemporaryDirectory(
            prefix="cnnbench-", ignore_cleanup_errors=True
        )

    def close(self) -> None:
        """Ends the process, whatever it does, and removes its temporary folder."""
        self._kill()
        self._connection.close()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, *values: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """Sends a request with its values; returns the answer.

        Raises:
            WorkerError: the process failed, ended, or took longer.
        """
        try:
            self._connection.send((what, *values))
        except OSError:
            raise WorkerError(self._end()) from None
        return self._answer(what, timeout_s)

    def _answer(self, what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Returns the next answer; the first one, to no request, comes when the child is ready."""
        if not self._connection.poll(timeout_s):
            raise WorkerError(f"no answer to {what!r} in {timeout_s:.0f} s")
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._end()) from None
        if kind == "failed":
            raise WorkerError(value[:SHOWN_CHARACTERS])
        return value

    def _end(self) -> str:
        """Waits for the end of a process that hung up; returns how it ended."""
        code = self._wait(ENDING_S)
        if code is None:
            return f"the {self._noun} does not answer, and does not end"
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"the {self._noun} ended {how}"

    @abc.abstractmethod
    def _kill(self) -> None:
        """Kills the process, if it still runs, and waits for its end."""

    @abc.abstractmethod
    def _wait(self, seconds: float) -> int | None:
        """Returns the exit code, negative for a signal; None if the process does not end."""


def answer_requests(
    connection: Connection, prepare: Callable[[], tuple[Any, Callable[..., Any]]]
) -> None:
    """Answers the requests of a parent's `Child` until it hangs up.

    Args:
        connection: the child's end.
        prepare: returns the first answer, and the function that answers a request and its values.
    """
    try:
        first, answer = prepare()
        connection.send(("done", first))
        while True:
            try:
                request = connection.recv()
            except EOFError:
                return
            connection.send(("done", answer(*request)))
    except Exception as error:  # told to whoever asked, whatever it is
        connection.send(("failed", reason(error)))


class Worker(Child):
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
        super().__init__()
        variables = {"TMPDIR": self._temporary.name, **(environment or {})}
        self._process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(self._theirs, build, arguments, variables), daemon=True
        )
        self._process.start()
        self._theirs.close()

    def ready(self, timeout_s: float) -> float:
        """Waits until the thing is built; returns the seconds from the process's start till then.

        Raises:
            WorkerError: it cannot be built, or not in time.
        """
        return float(self._answer("build", timeout_s))

    def round(self, timeout_s: float) -> float:
        """Returns the seconds of one round.

        Raises:
            WorkerError: the process failed, died, or took longer.
        """
        return float(self._ask("round", timeout_s=timeout_s))

    def peak_memory_mb(self) -> float:
        """Returns the most memory that the process has had, in MB of 2**20 bytes."""
        return float(self._ask("memory", timeout_s=10.0))

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _wait(self, seconds: float) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode


def alternate(workers: Sequence[Worker], rounds: int, timeout_s: float) -> list[list[float]]:
    """Runs rounds of ready workers in turn; returns the seconds of each one's rounds."""
    seconds: list[list[float]] = [[] for _ in workers]
    for number in range(rounds):
        # Forwards, then backwards, so that no one always follows the same other.
        order = range(len(workers)) if number % 2 == 0 else reversed(range(len(workers)))
        for i in order:
            seconds[i].append(workers[i].round(timeout_s))
    return seconds


def _work(
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
    tempfile.tempdir = None  # or what was found before TMPDIR was set would hold

    def prepare() -> tuple[float, Callable[[str], float]]:
        work = build(*arguments)
        answers = {"round": work, "memory": peak_memory_mb}
        return time.perf_counter() - start, lambda what: answers[what]()

    answer_requests(connection, prepare)


def reason(error: Exception) -> str:
    """Returns an error's kind and the first line of its message that says what is wrong.

    Those of TensorFlow begin with where in a graph it is.
    """
    where = ("Graph execution error", "Detected at node", "<stack traces")
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = [line for line in lines if not line.startswith(where)] or lines
    return ": ".join([type(error).__name__, *what[:1]])
