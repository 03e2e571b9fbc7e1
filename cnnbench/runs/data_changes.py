"""Changes of single image files since a run started, which its user accepts by name.

A removed file keeps its place in the order of the files: the splits, the number of steps and the
order of training stay what they were. See `cnnbench.data.splits` for what is read in its place.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cnnbench.data.examples import REMOVED
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.splits import training_splits
from cnnbench.errors import RunError, UsageError
from cnnbench.runs import network
from cnnbench.runs.run import LISTING, Run, open_run
from cnnbench.system import files

SHOWN = 8


def accept(run: Run, access: Access | None, names: Sequence[str]) -> tuple[Run, list[str]]:
    """Accepts that some files of a run's data set were removed or replaced, and records it.

    Args:
        run: a run that this process has locked.
        access: where data sets are stored; see `network.access_of`.
        names: the files, as paths or as names below the data set's folder.

    Returns:
        The run with its new environment.json, and lines on what was accepted.

    Raises:
        UsageError: a file is not in the data set, or did not change.
        RunError: other files changed too, or the number of training images did.
    """
    access, about = network.access_of(run, access), run.data()
    before = _listing(run)
    if access.data_path is None or before is None:
        what = "has no list of its files, so that no change of one can be told from others"
        raise RunError(what, where=str(run.path))
    accepted = {_name(name, access.data_path, before) for name in names}
    gone = [name for name in accepted if not _is_there(access.data_path, name)]
    access = replace(access, removed=tuple(dict.fromkeys([*access.removed, *gone])))
    dataset = open_dataset(run.recipe.data, access)
    assert dataset.identity is not None
    now = _by_name(dataset.identity)
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    if others := sorted(changed - accepted):
        raise RunError(
            f"other files of the data set changed too: {_some(others)}",
            where=str(run.path),
            allowed="--accept-data-change accepts removed and replaced files, each by its name",
        )
    if not changed:  # as in a stage that has accepted it before
        return run, []
    splits = training_splits(dataset, run.recipe.data)
    if len(splits.train) != about.train_examples or list(dataset.classes) != about.classes:
        what = f"{len(splits.train)} training images can be used, not {about.train_examples}"
        raise RunError(f"{what} as when the run started", where=str(run.path))
    kinds = {name: "removed" if name in gone else "replaced" for name in sorted(changed)}
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    environment = {key: value for key, value in run.environment.items() if key != "sha256"}
    environment["data"] = about.model_dump() | {
        "fingerprint": dataset.fingerprint,
        "validation_examples": len(splits.validation) if splits.validation else 0,
        "skipped_images": [*splits.skipped, *splits.skipped_in_validation],
        "removed_files": list(dataset.removed),
    }
    environment["accepted_data_changes"] = [
        *run.environment.get("accepted_data_changes", ()),
        *({"file": name, "change": change, "accepted": date} for name, change in kinds.items()),
    ]
    write_listing(run.path, dataset.identity)
    files.write_json(run.path / "environment.json", files.signed(environment))
    return open_run(run.path), [
        f"accepted: {name} was {change} since the run started" for name, change in kinds.items()
    ]


def write_listing(folder: Path, identity: str) -> None:
    """Writes the list of a data set's files into a run directory."""
    data = identity.encode(errors="surrogateescape")
    files.write_bytes(folder / LISTING, gzip.compress(data, 1, mtime=0))


def changed_files(run: Run, identity: str) -> str | None:
    """Returns words on the files that changed since the run started; None if it is not known."""
    before, now = _listing(run), _by_name(identity)
    if before is None:
        return None
    kinds = {
        "removed": before.keys() - now.keys(),
        "added": now.keys() - before.keys(),
        "replaced": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    return "; ".join(f"{kind}: {_some(sorted(names))}" for kind, names in kinds.items() if names)


def _listing(run: Run) -> dict[str, str] | None:
    """Returns the content of each file when the run started, by name; None if it was not kept."""
    try:
        data = gzip.decompress((run.path / LISTING).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError) as error:
        raise RunError(f"cannot read: {files.why(error)}", where=str(run.path / LISTING)) from None
    if hashlib.sha256(data).hexdigest() != run.data().fingerprint:
        raise RunError("was changed since the run started", where=str(run.path / LISTING))
    return _by_name(data.decode(errors="surrogateescape"))


def _by_name(identity: str) -> dict[str, str]:
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


def _name(given: str, root: Path, before: Mapping[str, str]) -> str:
    """Returns the name of a file below the data set's folder.

    Raises:
        UsageError: it was not there when the run started.
    """
    below = os.path.relpath(files.expanded(given).absolute(), root.absolute())
    for name in (given, below):
        if name in before:
            return name
    raise UsageError(
        "is no file of the data set when the run started",
        where=given,
        allowed=f"a path, or a name below {root}",
    )


def _is_there(root: Path, name: str) -> bool:
    """Returns whether there is a file of a name, which is in Unicode's form NFC; macOS uses NFD."""
    names = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return any(os.path.lexists(root / each) for each in names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
