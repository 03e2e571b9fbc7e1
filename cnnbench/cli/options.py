"""Options shared by several commands, and printing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cnnbench.errors import RunError, printable
from cnnbench.system import files
from cnnbench.system.output import discard

if TYPE_CHECKING:
    from cnnbench.data.open import Access
    from cnnbench.runs.run import Run

Result = TypeVar("Result", bound=Mapping[str, Any])
# Exit code of a command that a signal stopped with nothing to resume: 128 + SIGINT, as in shells.
INTERRUPTED = 130


class FilePath(click.Path):
    """A path in which `~` is the home folder, as in a recipe; few shells expand --option=~/x."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Returns the path that an argument names.

        Raises:
            click.BadParameter: it is empty, as of a variable that is not set, or an address.
        """
        text = os.fsdecode(value)
        if not text:
            self.fail("the path is empty; '.' is the current folder.", param, ctx)
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) and not os.path.lexists(text):
            self.fail(f"{text!r} is an address; only local files are read.", param, ctx)
        return files.expanded(os.fsdecode(super().convert(text, param, ctx)))


overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe, such as data.batch_size=64. Can be repeated.",
)
data_dir = click.option(
    "--data-dir",
    type=FilePath(),
    envvar="TFDS_DATA_DIR",
    help="Folder of prepared data sets. [env: TFDS_DATA_DIR]",
)
data_path = click.option(
    "--data-path",
    type=FilePath(),
    help="Folder of the images, if they are not where they were: in place of the recipe's "
    "data.path. Their content is checked.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object.")
run_argument = click.argument("run", required=False, type=FilePath())


def access_to(data_dir: Path | None, data_path: Path | None = None) -> Access:
    """Returns access to data sets, in the places of --data-dir and --data-path if given."""
    from cnnbench.data.open import Access

    return Access(data_dir, data_path=data_path)


def chosen_run(path: Path | None) -> Run:
    """Opens the run at the path; without a path, the newest finished run, whose path it prints."""
    from cnnbench.runs.find import newest_run
    from cnnbench.runs.run import open_run

    if path is not None:
        return open_run(path)
    run = newest_run(finished=True)
    say(f"run: {run.path}")
    return run


def say(text: str) -> None:
    """Prints a message on stderr, if it can be written and anybody still reads it."""
    try:
        click.echo(printable(text), err=True)
    except OSError:  # it is for people, and no reason to end a training
        discard(sys.stderr)


def say_path(path: Path) -> None:
    """Prints the path of a finished run on stdout, if anybody still reads it."""
    try:
        with _to_stdout():
            click.echo(path)
    except BrokenPipeError:
        discard(sys.stdout)


def answer(result: Result, as_json: bool, table: Callable[[Result], Any]) -> None:
    """Prints a result on stdout, as a JSON object or as the table that `table` makes from it."""
    if as_json:
        say_json(result)
    else:
        from rich.console import Console

        console = Console(emoji=False)
        if not console.is_terminal:  # in a file or a pipe, do not fold lines at 80 columns
            console = Console(width=120, emoji=False)
        with _to_stdout():
            console.print(table(result))


def say_json(value: Any) -> None:
    """Prints JSON on stdout."""
    with _to_stdout():
        click.echo(json.dumps(value, indent=1))


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    """Converts an error of writing to stdout, such as of a full disk, into a RunError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise RunError(f"cannot write: {files.why(error)}", where="the output") from error
