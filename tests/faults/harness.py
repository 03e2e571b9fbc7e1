"""Rows of the scoreboard: each a fault that is made many times, and what has to hold each time."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# One try: given a folder of its own and its random numbers, it raises if anything is wrong.
Try = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Row:
    """A kind of fault.

    number: its place in the scoreboard.
    name: what is done and what must hold, in a line.
    tries: yields the tries, `count` of them or as many as there are kinds; each raises where it
        fails.
    full, short: how many tries `make faults` and the default tests make.
    """

    number: int
    name: str
    tries: Callable[[int], Iterator[Try]]
    full: int
    short: int


ROWS: dict[int, Row] = {}


def row(number: int, name: str, *, full: int, short: int = 0):
    """Registers a function of a count, which yields that many tries, as a row."""

    def register(tries: Callable[[int], Iterator[Try]]) -> Callable[[int], Iterator[Try]]:
        ROWS[number] = Row(number, name, tries, full, short)
        return tries

    return register


@dataclass(frozen=True)
class Score:
    """How many tries of a row held, and what went wrong in the others."""

    passed: int
    total: int
    failures: tuple[str, ...]


def score(found: Row, count: int, *, seed: int = 0) -> Score:
    """Makes the tries of a row, each in a new folder; those that fail leave theirs behind."""
    failures: list[str] = []
    total = 0
    for number, attempt in enumerate(found.tries(count)):
        total += 1
        folder = Path(tempfile.mkdtemp(prefix=f"cnnbench-fault-{found.number}-"))
        try:
            attempt(folder, random.Random(f"{seed} {found.number} {number}"))  # noqa: S311 - no secret
        except Exception as error:  # counted and told, whatever it is
            failures.append(f"try {number}: {type(error).__name__}: {error} (see {folder})")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return Score(total - len(failures), total, tuple(failures))
