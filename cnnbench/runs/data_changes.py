"""Changes of single image files since a run started, which its user accepts by name.

A removed file keeps its place in the order of the files: the splits, the number of steps and the
order of training stay what they were. See `cnnbench.data.splits` for what is read in its place.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cnnbench.data.examples import Dataset
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.splits import Splits, evaluation_examples, training_splits
from cnnbench.errors import RunError, UsageError, shortened
from cnnbench.registry.kinds import DataSpec
from cnnbench.runs import file_lists, network
from cnnbench.runs.run import Run, open_run
from cnnbench.system import files


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
        DataError: no image of a split is left.
    """
    access, about = network.access_of(run, access), run.data()
    before = file_lists.read(run)
    if access.data_path is None or before is None:
        what = "has no list of its files, so that no change of one can be told from others"
        raise RunError(what, where=str(run.path))
    accepted = {_name(name, access.data_path, before) for name in names}
    gone = [name for name in accepted if not _is_there(access.data_path, name)]
    access = replace(access, removed=tuple(dict.fromkeys([*access.removed, *gone])))
    dataset = open_dataset(run.recipe.data, access)
    assert dataset.identity is not None
    now = file_lists.by_name(dataset.identity)
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    if others := sorted(changed - accepted):
        raise RunError(
            f"other files of the data set changed too: {', '.join(shortened(others))}",
            where=str(run.path),
            allowed="--accept-data-change accepts removed and replaced files, each by its name",
        )
    unchanged = accepted - changed
    if unchanged and (unchanged := unchanged - _accepted_before(run)):
        where = ", ".join(shortened(sorted(unchanged)))
        raise UsageError("did not change since the run started", where=where)
    if not changed:
        return run, []
    splits = _splits(dataset, run.recipe.data)
    if len(splits.train) != about.train_examples or list(dataset.classes) != about.classes:
        what = f"{len(splits.train)} training images can be used, not {about.train_examples}"
        raise RunError(f"{what} as when the run started", where=str(run.path))
    kinds = {name: "removed" if name in gone else "replaced" for name in sorted(changed)}
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    environment = {key: value for key, value in run.environment.items() if key != "sha256"}
    fingerprint = dataset.fingerprint
    assert fingerprint is not None
    environment["data"] = about.model_dump() | {
        "fingerprint": fingerprint,
        "validation_examples": len(splits.validation) if splits.validation else 0,
        "skipped_images": [*splits.skipped, *splits.skipped_in_validation],
        "removed_files": list(dataset.removed),
    }
    environment["accepted_data_changes"] = [
        *run.environment.get("accepted_data_changes", ()),
        *({"file": name, "change": change, "accepted": date} for name, change in kinds.items()),
    ]
    file_lists.write(file_lists.place(run.path, fingerprint), dataset.identity)
    files.write_json(run.path / "environment.json", files.signed(environment))
    file_lists.remove_others(run.path, fingerprint)
    return open_run(run.path), [
        f"accepted: {name} was {change} since the run started" for name, change in kinds.items()
    ]


def _splits(dataset: Dataset, data: DataSpec) -> Splits:
    """Returns the splits of a data set, of which none is empty.

    Raises:
        DataError: one is.
    """
    # Without decoding the test images.
    evaluation_examples(dataset, data.model_copy(update={"on_bad_image": "fail"}), "test")
    return training_splits(dataset, data)


def _accepted_before(run: Run) -> set[str]:
    """Returns the files whose changes were accepted in a run or in the stages before it."""
    names = {each["file"] for each in run.environment.get("accepted_data_changes", ())}
    return names.union(*(_accepted_before(other) for other in run.others("init").values()))


def _name(given: str, root: Path, before: Mapping[str, str]) -> str:
    """Returns the name of a file below the data set's folder.

    Raises:
        UsageError: it was not there when the run started.
    """
    path, folder = (_composed(each.absolute()) for each in (files.expanded(given), root))
    for name in (_composed(given), os.path.relpath(path, folder)):
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


def _composed(path: str | Path) -> str:
    """Returns a path in Unicode's form NFC, in which a data set's list has its names."""
    return unicodedata.normalize("NFC", str(path))
