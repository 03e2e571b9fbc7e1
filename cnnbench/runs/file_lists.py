"""The list of a data set's files that a run keeps, which tells what changed since it started."""

from __future__ import annotations

import gzip
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from cnnbench.data.examples import REMOVED, Dataset
from cnnbench.errors import RunError, shortened
from cnnbench.runs.run import LISTING, Run
from cnnbench.system import files

WAY_OUT = (
    "cnnbench train --resume --run-dir {run}{data} --accept-data-change FILE accepts a removed or "
    "replaced one"
)


def place(folder: Path, fingerprint: str) -> Path:
    """Returns where the list of a data set's files is written after a change was accepted.

    The list of when the run started is LISTING. As the fingerprint in environment.json says which
    list is valid, a process that is killed between writing the two leaves a whole run.
    """
    return folder / LISTING.replace(".", f"-{fingerprint[:16]}.", 1)


def write(path: Path, identity: str) -> None:
    """Writes the list of a data set's files."""
    data = identity.encode(errors="surrogateescape")
    files.write_bytes(path, gzip.compress(data, 1, mtime=0))


def remove_others(folder: Path, fingerprint: str) -> None:
    """Removes the lists of a run directory that are not those of a fingerprint."""
    kept = place(folder, fingerprint)
    start, _, end = LISTING.partition(".")
    for path in folder.glob(f"{start}*.{end}"):
        if path != kept:
            path.unlink(missing_ok=True)


def read(run: Run) -> dict[str, str] | None:
    """Returns the content of each file of a run's data set, by name; None if it was not kept.

    The content is the size with a checksum, or REMOVED.

    Raises:
        RunError: the list is damaged or was changed.
    """
    fingerprint = run.data().fingerprint
    if fingerprint is None:
        return None
    file = place(run.path, fingerprint)
    file = file if file.exists() else run.path / LISTING
    try:
        data = gzip.decompress(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError) as error:
        raise RunError(f"cannot read: {files.why(error)}", where=str(file)) from None
    if hashlib.sha256(data).hexdigest() != fingerprint:
        raise RunError("was changed since the run started", where=str(file))
    return by_name(data.decode(errors="surrogateescape"))


def by_name(identity: str) -> dict[str, str]:
    """Returns what a data set's identity says of each file, by its name."""
    # A name may have line breaks and colons: what follows a name never does.
    found, name = {}, ""
    for line in identity.split("\n"):
        name += line
        start, *content = name.rsplit(":", 2)
        if content[-1:] == [REMOVED]:
            found[name.rsplit(":", 1)[0]], name = REMOVED, ""
        elif len(content) == 2 and content[0].isdecimal() and len(content[1]) == 8:
            found[start], name = ":".join(content), ""
        else:
            name += "\n"
    return found


def must_match(run: Run, dataset: Dataset, folder: Path | None = None) -> None:
    """Raises if a data set is not the one that a run was trained on.

    Args:
        run: the run.
        dataset: the data set, opened for it.
        folder: where it is, for the message; None: not said.

    Raises:
        RunError: it differs; the message names files that were removed, added or replaced, if the
            run kept a list of them, and the way out.
    """
    about = run.data()
    is_same = about.fingerprint in (None, dataset.fingerprint)
    if is_same and list(dataset.classes) == about.classes:
        return
    what = f"the data set{f' at {folder}' if folder else ''} differs from the training data"
    before = read(run) if dataset.lists_files and not is_same else None
    if before is None or dataset.identity is None:
        raise RunError(what, where=str(run.path))
    changes = "; ".join(_changes(before, by_name(dataset.identity)))
    found = getattr(run.recipe.data, "path", None)
    is_found = folder is None or (found and run.now(found) == folder)
    data = "" if is_found else f" --data-path {shlex.quote(str(folder))}"
    allowed = WAY_OUT.format(run=shlex.quote(str(run.path)), data=data)
    raise RunError(f"{what}: {changes}", where=str(run.path), allowed=allowed)


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns words on the files that differ in two lists."""
    kinds = {
        "removed": before.keys() - now.keys(),
        "added": now.keys() - before.keys(),
        "replaced": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    return [
        f"{kind}: {', '.join(shortened(sorted(names)))}" for kind, names in kinds.items() if names
    ]
