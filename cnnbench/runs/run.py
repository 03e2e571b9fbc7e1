"""The run directory: everything that one training wrote, and all that later commands read."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnbench.backend.settings import Settings
from cnnbench.errors import RecipeError, RunError
from cnnbench.recipe.load import read_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.runs.facts import DataFacts, facts_in
from cnnbench.system import environment as provenance
from cnnbench.system import files, locks

RUNS = Path("runs")
# The whole recipe, in a folder that has the runs of its stages.
STAGES = "stages.yaml"
ARCHITECTURE = "architecture.json"


@dataclass(frozen=True)
class Run:
    """A run directory and the resolved recipe that lies in it."""

    path: Path
    recipe: Recipe
    _read: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """What environment.json says; it is read and checked once.

        Raises:
            RunError: the file is missing or damaged.
        """
        return read_environment(self.path) if self._read is None else self._read

    @property
    def checkpoints(self) -> Path:
        """The folder of the last checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the epoch with the best validation metric; without one, of the last."""
        return self.path / "best"

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return (self.path / "finished.json").is_file()

    def must_match(self, recipe: Recipe) -> None:
        """Refuses to go on with a recipe that is not the run's own.

        Raises:
            RunError: it differs; the message has the lines that do.
        """
        if recipe == self.recipe:
            return
        lines = difflib.unified_diff(
            self.recipe.dump().splitlines(), recipe.dump().splitlines(), n=0, lineterm=""
        )
        changed = "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
        raise RunError(f"the recipe changed since the run began\n{changed}", where=str(self.path))

    def must_match_data(self, now: DataFacts) -> None:
        """Refuses to go on with other data than the run began with, wherever it lies.

        Raises:
            RunError: something differs.
        """
        for key, before in self.data().model_dump(exclude={"data_dir"}).items():
            if before != getattr(now, key):
                raise RunError(
                    f"the data set changed: {key} was {before}, is {getattr(now, key)}",
                    where=str(self.path),
                )

    def must_match_code(self, *, replicas: int, force: bool) -> list[str]:
        """Refuses to go on with other code or another number of replicas than the run began with.

        Code is the versions of the packages and the hash of cnnbench's own source, whatever the
        commit.

        Returns:
            What differs and is let through, a line each.

        Raises:
            RunError: something differs; versions are let through by force.
        """
        environment = self.environment
        kept: Any = environment.get("versions")
        before = kept if isinstance(kept, dict) else {}
        now = provenance.versions()
        changed = [
            f"{key} was {before.get(key)}, is {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        changed += _changed_source(environment)
        kept = environment.get("runtime")
        if not isinstance(kept, dict) or kept.get("replicas") != replicas:
            found = kept.get("replicas") if isinstance(kept, dict) else None
            raise RunError(
                f"the number of replicas was {found}, is {replicas}", where=str(self.path)
            )
        if changed and not force:
            raise RunError(
                "the code changed since the run began\n" + "\n".join(changed),
                where=str(self.path),
                allowed="--force goes on with it, though no longer bit for bit",
            )
        return [f"forced: {line}" for line in changed]

    def data(self) -> DataFacts:
        """Returns what environment.json says of the data.

        Raises:
            RunError: the file is missing or damaged.
        """
        return facts_in(self.environment, self.path)

    def settings(self) -> Settings:
        """Returns how TensorFlow ran the training, from environment.json.

        Raises:
            RunError: the file is missing or damaged.
        """
        kept: Any = self.environment.get("runtime")
        try:
            return Settings(*(kept[key] for key in ("onednn", "xla", "threads")))
        except (TypeError, KeyError):
            raise RunError(
                "environment.json is damaged: runtime", where=str(self.path / "environment.json")
            ) from None

    def architecture(self) -> list[dict[str, Any]]:
        """Returns the records of the stages that made the network of what the recipe names.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / ARCHITECTURE
        if not file.is_file():
            return []
        try:
            kept = json.loads(file.read_text())
            if not files.is_as_signed(kept):
                raise ValueError("it was changed")
            return list(kept["stages"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"cannot be read: {error}", where=str(file)) from None

    def weights_sha256(self) -> str:
        """Returns the SHA-256 of the best weights' manifest, which has that of the arrays.

        Raises:
            RunError: there are none.
        """
        file = self.best / "manifest.json"
        try:
            return files.sha256(file)
        except OSError as error:
            what = f"the run has no weights: {error.strerror or error}"
            raise RunError(what, where=str(file)) from error

    def others(self, *names: str) -> dict[str, Run]:
        """Returns the runs that this one began from or learns from, by what the recipe calls them.

        Args:
            names: of those that are wanted; none: all.

        Raises:
            RunError: environment.json is damaged, or one of them is gone or has other weights.
        """
        found = {}
        kept: Any = self.environment.get("runs") or {}
        for name, about in kept.items():
            if names and name not in names:
                continue
            found[name] = other = open_run(about["path"])
            if other.weights_sha256() != about["weights_sha256"]:
                raise RunError(
                    f"the weights changed since {self.path} began", where=str(other.path)
                )
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, an epoch each.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text().splitlines() if file.is_file() else []
            return [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot be read: {error}", where=str(file)) from None

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Writes metrics.jsonl whole."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(self.path / "metrics.jsonl", text.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process from writing here; the kernel frees the lock of a dead one.

        Raises:
            RunError: another process holds it, or took the folder away.
        """

        def refuse(holder: str) -> None:
            what = f"another process ({holder}) writes to this run"
            raise RunError(what, where=str(self.path)) from None

        with contextlib.ExitStack() as stack:
            with files.storage_errors(self.path):
                while True:
                    handle = locks.open_lock(self.path / "lock")
                    stack.callback(os.close, handle)
                    locks.lock(handle, refuse)
                    # A run that could not begin takes its lock away, maybe after it was opened
                    # here; a later process would lock a new file.
                    if locks.is_at(handle, self.path / "lock"):
                        break
            yield


def open_run(path: str | Path) -> Run:
    """Opens a run directory; where it has the runs of several stages, that of the last.

    Raises:
        RunError: it is none, or its recipe is damaged, or not all its stages are done.
    """
    path = Path(path)
    if (path / STAGES).is_file():
        *_, path = folders = stage_folders(path, read_recipe(path / STAGES))
        if not (path / "finished.json").is_file():
            begun = [str(each) for each in folders if (each / "recipe.yaml").is_file()]
            raise RunError(
                "its stages are not all done",
                where=str(path.parent),
                allowed=" or ".join(["--resume to go on", *begun]),
            )
    recipe = path / "recipe.yaml"
    if not recipe.is_file():
        raise RunError("not a run directory: it has no recipe.yaml", where=str(path))
    environment = read_environment(path)
    facts_in(environment, path)
    try:
        digest = files.sha256(recipe)
    except OSError as error:
        raise RunError(f"cannot read: {error.strerror}", where=str(recipe)) from None
    if environment.get("recipe_sha256") != digest:
        raise RunError("the recipe was changed since the run began", where=str(recipe))
    try:
        return Run(path, read_recipe(recipe), environment)
    except RecipeError as error:
        raise RunError(f"the recipe cannot be read any more:\n{error}") from None


def stage_folders(folder: Path, recipe: Recipe) -> list[Path]:
    """Returns where the run of each stage of a recipe lies, below its folder."""
    names = [f"{number}-{spec.name}" for number, spec in enumerate(recipe.compress, start=1)]
    return [folder / name for name in names]


def _changed_source(environment: Mapping[str, Any]) -> list[str]:
    """Returns how the source of cnnbench differs from a run's, in at most one line.

    The commit stands for the source in a run of a version that did not keep the hash of it.
    """
    before, commit = environment.get("code_sha256"), environment.get("git_commit")
    if before is not None and before == provenance.code_sha256():
        return []
    commit_now = provenance.git_commit()
    commits = f"git_commit was {commit}, is {commit_now}"
    if before is None:
        return [f"{commits}; the run has no code_sha256"] if commit != commit_now else []
    about = f" ({commits})" if commit != commit_now else ""
    return [f"code_sha256 was {before}, is {provenance.code_sha256()}{about}"]


def read_environment(path: Path) -> dict[str, Any]:
    """Returns what the environment.json of a run directory says.

    Raises:
        RunError: the file is missing, damaged or was changed.
    """
    file = path / "environment.json"
    try:
        environment = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"cannot be read: {error}", where=str(file)) from None
    if not files.is_as_signed(environment):
        raise RunError("was changed since the run began", where=str(file))
    return environment
