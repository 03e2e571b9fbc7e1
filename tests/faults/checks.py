"""What the rows of single processes share: how they are started, and what they must answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .harness import Try

ROOT = Path(__file__).parents[2]


def spread(tries: Sequence[Try], count: int) -> Iterator[Try]:
    """Yields so many of the tries, evenly spaced, or all if there are no more."""
    count = min(count, len(tries))
    yield from (tries[i * len(tries) // count] for i in range(count))


def as_command(work: Callable[[], object]) -> None:
    """Runs a function as a command of the tool, which ends the process as its own do."""
    from cnnbench import cli

    @cli.cli.command()
    def fault() -> None:
        work()

    cli.main(["fault"])


def child(function: Callable[[], None], *arguments: object) -> list[str]:
    """Returns the command that calls a function of these modules in a process of its own."""
    module = function.__module__.rpartition(".")[2]
    call = f"from tests.faults import {module}; {module}.{function.__name__}()"
    return [sys.executable, "-c", call, *map(str, arguments)]


def run_child(
    function: Callable[[], None], *arguments: object, **environment: str
) -> subprocess.CompletedProcess:
    """Calls a function of these modules in a process of its own."""
    return subprocess.run(
        child(function, *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=300,
    )


def cnnbench(
    *arguments: object, before: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess:
    """Runs the command line as its own process."""
    command = [*before, sys.executable, "-m", "cnnbench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=300
    )


def check(holds: object, what: str) -> None:
    """Raises if something does not hold."""
    if not holds:
        raise AssertionError(what)


def check_error(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    """Raises unless a process ended with an exit code and one block of error with the words."""
    check(done.returncode == code, f"exit code {done.returncode}, not {code}: {done.stderr[-600:]}")
    check("Traceback" not in done.stderr, f"a traceback: {done.stderr[-600:]}")
    blocks = len(re.findall("^error: ", done.stderr, re.MULTILINE))
    check(blocks == 1, f"{blocks} errors: {done.stderr[-600:]}")
    message = done.stderr.partition("error: ")[2]
    for word in words:
        check(word in message, f"{word!r} is not in {message[:600]!r}")


def flipped(data: bytes, place: int) -> bytes:
    """Returns data with the bits of one byte turned."""
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
