"""Finds runs by path, by name, or by the time they were created."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from cnnbench.errors import RecipeError, RunError, UsageError
from cnnbench.recipe.load import read_recipe
from cnnbench.recipe.recipe import MAX_NAME, Recipe
from cnnbench.runs.run import RUNS, STAGES, Run, open_run, read_environment, stage_folders
from cnnbench.system import files


def run_around(artifact: Path) -> Run:
    """Opens the run whose directory contains an artifact.

    Raises:
        UsageError: the artifact is in no run directory.
        RunError: the run is damaged.
    """
    for folder in artifact.absolute().parents:
        if (folder / "recipe.yaml").is_file() and (folder / "environment.json").is_file():
            return open_run(folder)
    raise UsageError(
        "the artifact is not in a run directory",
        where=str(artifact),
        allowed="name the RUN whose data and recipe it uses",
    )


def find_run(name: str) -> Run:
    """Returns the run at a path, or the newest finished run of the recipe with that name.

    Raises:
        UsageError: there is none.
        RunError: the run is damaged.
    """
    path = files.expanded(name)
    if (path / "recipe.yaml").is_file() or (path / STAGES).is_file():
        return open_run(path)
    if "/" in name:
        raise UsageError(
            "there is no run", where=name, allowed="a run directory, or a recipe's name"
        )
    return newest_run(finished=True, name=name)


def newest_run(*, finished: bool, name: str | None = None) -> Run:
    """Returns the newest run below runs/.

    Args:
        finished: whether to look for finished or unfinished runs.
        name: the name of its recipe; None: any.

    Raises:
        UsageError: there is none.
    """
    if RUNS.is_dir():
        with files.storage_errors(RUNS, "look for runs"):
            next(RUNS.iterdir(), None)  # `glob` finds nothing in a folder that may not be read
    # A recipe with several compression stages has one run per stage, in a common folder.
    found = [*RUNS.glob("*/recipe.yaml"), *RUNS.glob("*/[0-9]*/recipe.yaml")]
    for file in sorted(found, key=_created, reverse=True):
        done = (file.parent / "finished.json").is_file()
        if done == finished and name in (None, name_in(file)):
            return open_run(file.parent)
    kind = "finished run" if finished else "unfinished run"
    kind += f" of {name!r}" if name else ""
    raise UsageError(f"no {kind} below {RUNS}/", allowed="name a run directory, or train one")


def _created(recipe: Path) -> tuple[float, int]:
    """Returns when a run, or the first of several stages, was created, and its file's time in ns.

    The latter is that of a copy. It decides between runs of the same second, and if
    environment.json cannot be read.
    """
    modified = recipe.stat().st_mtime_ns
    folders = [recipe.parent, *sorted(recipe.parent.glob("[0-9]*"))]
    first = next((each for each in folders if (each / "environment.json").is_file()), None)
    try:
        kept = read_environment(first)["created"] if first else None
        return datetime.strptime(str(kept), "%Y-%m-%dT%H:%M:%S%z").timestamp(), modified
    except (RunError, KeyError, ValueError):
        return modified / 1e9, modified


def name_in(file: Path) -> str | None:
    """Returns the name in a run's recipe; None if the file is unreadable."""
    try:
        return read_recipe(file).name
    except (RecipeError, OSError):
        return None


def unfinished(recipe: Recipe) -> Path:
    """Returns the directory of the newest unfinished run of a recipe below runs/.

    Raises:
        UsageError: there is none.
    """
    if len(recipe.compress) < 2:
        return newest_run(finished=False, name=recipe.name).path
    for file in sorted(RUNS.glob(f"*/{STAGES}"), key=_created, reverse=True):
        if name_in(file) == recipe.name and not is_finished(file.parent):
            return file.parent
    raise UsageError(f"no unfinished run of {recipe.name!r} below {RUNS}/")


def is_finished(folder: Path) -> bool:
    """Returns whether all compression stages in a folder are finished."""
    return all(path.joinpath("finished.json").is_file() for path, _ in kept_stage_recipes(folder))


def stage_runs(folder: Path) -> list[Run]:
    """Returns the runs of the compression stages that have started, in order."""
    paths = (path for path, _ in kept_stage_recipes(folder))
    return [open_run(path) for path in paths if (path / "recipe.yaml").is_file()]


def kept_stage_recipes(folder: Path) -> list[tuple[Path, Recipe]]:
    """Returns the run directory and the recipe of each compression stage in a folder.

    Raises:
        RecipeError: the folder's stages.yaml is damaged.
    """
    return stage_recipes(folder, read_recipe(folder / STAGES))


def stage_recipes(folder: Path, recipe: Recipe) -> list[tuple[Path, Recipe]]:
    """Returns the run directory and the recipe of each compression stage.

    The recipe of a stage includes the stages before it, and ends with that stage.
    """
    found = []
    for number, path in enumerate(stage_folders(folder, recipe), start=1):
        name, is_last = path.name, number == len(recipe.compress)
        update: dict[str, Any] = {"compress": recipe.compress[:number]}
        # The target applies to the last stage only.
        if not is_last:
            short = recipe.name[: MAX_NAME - len(name) - 1]
            update |= {"name": f"{short}.{name}", "target": None}
        found.append((path, recipe.model_copy(update=update)))
    return found
