"""The errors a user can meet: each says what, where and what was allowed, and has its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Of a recipe, and the characters of each.
SHOWN_PROBLEMS, SHOWN_CHARACTERS = 50, 300


class CnnbenchError(Exception):
    """A problem that the user can mend; shown as one block of text, never as a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, allowed: str | None = None):
        self.what, self.where, self.allowed = what, where, allowed
        super().__init__(_line(what, where, allowed))


class UsageError(CnnbenchError):
    """Wrong use of a command, a recipe that does not fit, or a part that is not installed.

    key: of the recipe, as "data.batch_size", where the error is about one.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        allowed: str | None = None,
        key: str | None = None,
    ):
        self.key = key
        super().__init__(f"{key}: {what}" if key else what, where=where, allowed=allowed)


class DataError(CnnbenchError):
    """A data set or an image that is absent or cannot be read."""

    exit_code = 3


class MissingDataError(DataError):
    """A data set that is not at hand."""


class DivergedError(CnnbenchError):
    """The loss, a gradient or a weight became NaN or infinite."""

    exit_code = 4


class VerificationError(CnnbenchError):
    """An artifact is not what the trained network is, or a run does not reach its target."""

    exit_code = 5


class RunError(CnnbenchError):
    """A run directory that is locked, damaged or does not match."""

    exit_code = 6


class InterruptedRun(CnnbenchError):  # noqa: N818 - it is an outcome, not a fault
    """Training stopped by a signal, with its state saved."""

    exit_code = 75


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe."""

    where: str
    what: str
    allowed: str | None = None

    def __str__(self) -> str:
        what = self.what
        if len(what) > SHOWN_CHARACTERS:
            what = f"{what[:SHOWN_CHARACTERS]}…"
        return _line(what, self.where, self.allowed)


class RecipeError(UsageError):
    """Everything that is wrong with a recipe, each problem with its place."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems, self.key = tuple(problems), None
        more = len(self.problems) - SHOWN_PROBLEMS
        shown = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if more > 0:
            shown.append(f"… and {more} more")
        Exception.__init__(self, "\n".join(shown))


def printable(text: str) -> str:
    """Returns text with control characters and the like spelled out, for names may hold any."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _line(what: str, where: str | None, allowed: str | None) -> str:
    return (f"{where}: " if where else "") + what + (f"; {allowed}" if allowed else "")
