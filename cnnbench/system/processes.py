"""Worker processes that each measure one candidate, one round per request.

TensorFlow reads some settings only once, at import, and peak memory is a property of a process, so
each candidate runs in a new process. Several workers are kept ready and take turns, so that a
comparison also holds on a machine with other load.
"""

from __future__ import annotations

import abc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from cnnbench.system.measure import peak_memory_mb

TIMEOUT_S = 600.0
# A crashing process may first write a core dump.
ENDING_S = 30.0
# Length limit of an error message from a child process.
SHOWN_CHARACTERS = 300
# One round of a measurement; returns the measured time in seconds.
Round = Callable[[], float]


class WorkerError(Exception):
    """A worker failed, died or timed out; the message says which."""


class Child(abc.ABC):
    """A child process that serves requests over a connection, using `answer_requests`.

    It has its own temporary folder, which `close` deletes: TensorFlow leaves files behind when its
    process is killed.
    """

    noun = "process"

    def __init__(self) -> None:
        self._connection, self.theirs = multiprocessing.Pipe()
        self.temporary = tempfile.TemporaryDirectory(prefix="cnnbench-", ignore_cleanup_errors=True)

    def close(self) -> None:
        """Kills the process and removes its temporary folder."""
        self._kill()
        self._connection.close()
        self.temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, what: str, *values: Any, timeout_s: float = TIMEOUT_S) -> Any:
        """Sends a request with its arguments and returns the response.

        Raises:
            WorkerError: the process failed, ended or timed out.
        """
        try:
            self._connection.send((what, *values))
        except OSError:
            raise WorkerError(self.how_it_ended()) from None
        return self.receive(what, timeout_s)

    def receive(self, what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Returns the next response; the child sends the first one unasked, once it is ready."""
        if not self._connection.poll(timeout_s):
            raise WorkerError(f"no response to {what!r} in {timeout_s:.0f} s")
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self.how_it_ended()) from None
        if kind == "failed":
            raise WorkerError(value[:SHOWN_CHARACTERS])
        return value

    def how_it_ended(self) -> str:
        """Waits until a process that closed its connection exits; returns how it ended."""
        code = self._wait(ENDING_S)
        if code is None:
            return f"the {self.noun} does not respond and does not exit"
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"the {self.noun} ended {how}"

    @abc.abstractmethod
    def _kill(self) -> None:
        """Kills the process if it is still running, and waits for it to exit."""

    @abc.abstractmethod
    def _wait(self, seconds: float) -> int | None:
        """Returns the exit code, negative for a signal; None if the process does not exit."""


def answer_requests(
    connection: Connection, prepare: Callable[[], tuple[Any, Callable[..., Any]]]
) -> None:
    """Serves the requests of the parent's `Child` until it closes the connection.

    Args:
        connection: the child's end.
        prepare: returns the first response, and the function that handles a request, given its
            name and arguments.
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
    except Exception as error:  # any error is reported to the parent
        connection.send(("failed", reason(error)))


class Worker(Child):
    """A process that builds one candidate and measures it on request.

    Args:
        build: a module-level function, called in the new process; returns the round to measure.
        arguments: passed to `build`.
        environment: variables to set before `build` is called; None unsets a variable.
    """

    def __init__(
        self,
        build: Callable[..., Round],
        *arguments: Any,
        environment: Mapping[str, str | None] | None = None,
    ):
        super().__init__()
        variables = {"TMPDIR": self.temporary.name, **(environment or {})}
        self._process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(self.theirs, build, arguments, variables), daemon=True
        )
        self._process.start()
        self.theirs.close()

    def ready(self, timeout_s: float) -> float:
        """Waits until `build` returns; returns the seconds since the process started.

        Raises:
            WorkerError: `build` failed or timed out.
        """
        return float(self.receive("build", timeout_s))

    def round(self, timeout_s: float) -> float:
        """Runs one round and returns its time in seconds.

        Raises:
            WorkerError: the process failed, died or timed out.
        """
        return float(self.ask("round", timeout_s=timeout_s))

    def peak_memory_mb(self) -> float:
        """Returns the peak resident memory of the process, in MB of 2**20 bytes."""
        return float(self.ask("memory", timeout_s=10.0))

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _wait(self, seconds: float) -> int | None:
        self._process.join(seconds)
        return self._process.exitcode


def alternate(workers: Sequence[Worker], rounds: int, timeout_s: float) -> list[list[float]]:
    """Runs rounds of ready workers in turn; returns each worker's times in seconds."""
    seconds: list[list[float]] = [[] for _ in workers]
    for number in range(rounds):
        # Alternate the direction, so that no worker always follows the same other one.
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
    tempfile.tempdir = None  # drop the folder cached before TMPDIR was set

    def prepare() -> tuple[float, Callable[[str], float]]:
        work = build(*arguments)
        handlers = {"round": work, "memory": peak_memory_mb}
        return time.perf_counter() - start, lambda what: handlers[what]()

    answer_requests(connection, prepare)


def reason(error: Exception) -> str:
    """Returns an error's type and the first informative line of its message.

    TensorFlow's messages begin with lines about the position in the graph, which are skipped.
    """
    where = ("Graph execution error", "Detected at node", "<stack traces")
    lines = [line for line in str(error).splitlines() if line.strip()]
    what = [line for line in lines if not line.startswith(where)] or lines
    return ": ".join([type(error).__name__, *what[:1]])
