"""Creates run directories."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnbench.data.examples import Dataset
from cnnbench.errors import RunError
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs import file_lists
from cnnbench.runs.facts import DataFacts
from cnnbench.runs.run import ARCHITECTURE, LISTING, RUNS, Run
from cnnbench.system import environment as provenance
from cnnbench.system import files

# Files written before recipe.yaml, which makes a folder a run.
FIRST = {"lock", "environment.json", ARCHITECTURE, LISTING}


@contextlib.contextmanager
def new_run(path: Path | None, recipe: Recipe) -> Iterator[Run]:
    """Yields a run in a folder that this process has locked. `commit` makes the folder a run.

    If `commit` is not called, the folder is removed again.

    Args:
        path: a folder that does not exist or is empty; None: a new one below runs/.
        recipe: the recipe to train.

    Raises:
        RunError: the folder is not empty, cannot be written or is locked by another process.
    """
    made = path is None or not path.exists()
    with files.storage_errors(path or RUNS, "create the run"):
        if path is None:
            path = new_folder(recipe.name)
        else:
            path.mkdir(parents=True, exist_ok=True)
        before = {entry.name for entry in path.iterdir()}
    run = Run(path, recipe)
    with run.locked():
        try:
            # Checked under the lock: another process may have created a run here before it was
            # held. A process that was killed before `commit` leaves only these files.
            must_be_free(path)
            for partial in _leftovers(path):
                partial.unlink()
            yield run
        finally:
            if not (path / "recipe.yaml").is_file():
                for name in FIRST - before:
                    (path / name).unlink(missing_ok=True)
                if made:
                    with contextlib.suppress(OSError):  # another process now uses the folder
                        path.rmdir()


def must_be_free(path: Path) -> None:
    """Raises if a folder contains anything but leftovers of a run killed before `commit`.

    Raises:
        RunError: it does, or it cannot be read.
    """
    with files.storage_errors(path, "read"):
        there = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if there - FIRST - {partial.name for partial in _leftovers(path)}:
        raise RunError(
            "the run directory is not empty", where=str(path), allowed="--resume continues a run"
        )


def _leftovers(path: Path) -> list[Path]:
    return [x for name in (*FIRST, "recipe.yaml") for x in files.leftovers(path / name)]


def commit(
    run: Run,
    data: DataFacts,
    runtime: Mapping[str, Any],
    *,
    architecture: Sequence[Mapping[str, Any]] = (),
    others: Mapping[str, Run] | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Writes environment.json and finally recipe.yaml, which makes the folder a run.

    Args:
        run: a run from `new_run`.
        data: facts of the training data.
        runtime: the TensorFlow settings and the number of replicas.
        architecture: the records of the compression stages that changed the recipe's model.
        others: the runs that this one depends on: "init", which it starts from, and "teacher".
        dataset: the training data, whose list of files is kept, if it has one.
    """
    text = run.recipe.dump().encode()
    environment = provenance.describe() | {
        "path": str(run.path.absolute()),
        "recipe_sha256": hashlib.sha256(text).hexdigest(),
        "data": data.model_dump(),
        "runtime": dict(runtime),
        "runs": {
            name: {"path": str(other.path.absolute()), "weights_sha256": other.weights_sha256()}
            for name, other in (others or {}).items()
        },
    }
    if architecture:
        stages = [dict(record) for record in architecture]
        files.write_json(run.path / ARCHITECTURE, files.signed({"stages": stages}))
    if dataset is not None and dataset.lists_files and dataset.identity is not None:
        file_lists.write(run.path / LISTING, dataset.identity)
    files.write_json(run.path / "environment.json", files.signed(environment))
    files.write_bytes(run.path / "recipe.yaml", text)


def new_folder(name: str) -> Path:
    """Creates a folder below runs/, named after `name`, the time and, if taken, a number."""
    stem = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path
