"""Errors shown to the user: each says what, where and what is allowed, and has an exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Limits on what a RecipeError prints: problems, and characters per problem.
SHOWN_PROBLEMS, SHOWN_CHARACTERS = 50, 300
# Names that a message lists.
SHOWN_NAMES = 8


def shortened(names: Iterable[str]) -> list[str]:
    """Returns the first eight names; if there are more, also how many."""
    names = list(names)
    more = len(names) - SHOWN_NAMES
    return [*names[:SHOWN_NAMES], f"and {more} more"] if more > 0 else names


class CnnbenchError(Exception):
    """A problem that the user can fix; shown as a short message, never as a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, allowed: str | None = None):
        self.what, self.where, self.allowed = what, where, allowed
        super().__init__(_line(what, where, allowed))


class UsageError(CnnbenchError):
    """Wrong use of a command, an invalid recipe, or a package that is not installed.

    Attributes:
        key: the recipe key that the error is about, such as "data.batch_size"; None if none.
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
    """A data set or an image that is missing or cannot be read."""

    exit_code = 3


class MissingDataError(DataError):
    """A file or data set that is not on this machine."""


class DivergedError(CnnbenchError):
    """The loss, a gradient or a weight became NaN or infinite."""

    exit_code = 4


class VerificationError(CnnbenchError):
    """An exported file does not match the trained network, or a run misses its target."""

    exit_code = 5


class RunError(CnnbenchError):
    """A run directory that is locked, corrupt or does not match."""

    exit_code = 6


class InterruptedRun(CnnbenchError):  # noqa: N818 - an outcome, not an error
    """Training was stopped by a signal, after saving its state."""

    exit_code = 75


@dataclass(frozen=True)
class Problem:
    """One problem in a recipe: where it is, what it is, and what is allowed."""

    where: str
    what: str
    allowed: str | None = None

    def __str__(self) -> str:
        what = self.what
        if len(what) > SHOWN_CHARACTERS:
            what = f"{what[:SHOWN_CHARACTERS]}…"
        return _line(what, self.where, self.allowed)


class RecipeError(UsageError):
    """All problems found in a recipe."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems, self.key = tuple(problems), None
        self.where = self.allowed = None  # each problem has its own
        more = len(self.problems) - SHOWN_PROBLEMS
        shown = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if more > 0:
            shown.append(f"… and {more} more")
        self.what = "\n".join(shown)
        Exception.__init__(self, self.what)


def printable(text: str) -> str:
    """Escapes non-printable characters, which file and class names may contain."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _line(what: str, where: str | None, allowed: str | None) -> str:
    line = f"{where}: {what}" if where else what
    return f"{line}; {allowed}" if allowed else line
