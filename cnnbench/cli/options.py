"""Options that several commands share, and how commands print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnnbench.errors import printable

if TYPE_CHECKING:
    from cnnbench.data.open import Access
    from cnnbench.runs.run import Run

# Exit code of a command that a signal stopped with nothing left to resume, as shells count it.
INTERRUPTED = 130

data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="TFDS_DATA_DIR",
    help="Where prepared data sets lie. [env: TFDS_DATA_DIR]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
run_argument = click.argument("run", required=False, type=click.Path(path_type=Path))


def access_to(data_dir: Path | None) -> Access:
    """Returns where data sets are looked for, as --data-dir says."""
    from cnnbench.data.open import Access

    return Access(data_dir)


def chosen_run(path: Path | None) -> Run:
    """Opens the run of that path, or the newest finished one, and says which."""
    from cnnbench.runs.find import newest_run
    from cnnbench.runs.run import open_run

    if path is not None:
        return open_run(path)
    run = newest_run(finished=True)
    say(f"run: {run.path}")
    return run


def say(text: str) -> None:
    """Prints a line for people, on stderr."""
    click.echo(printable(text), err=True)


def answer(result: dict[str, Any], as_json: bool, table: Any) -> None:
    """Prints a result on stdout: as one JSON object, or as the table that `table` makes of it."""
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        from rich.console import Console

        console = Console()
        wide = Console(width=120)  # where nobody looks, a file or a pipe, nothing need be folded
        (console if console.is_terminal else wide).print(table(result))
