"""The run directory: all files that one training writes and later commands read."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnbench.backend.settings import Settings
from cnnbench.errors import RecipeError, RunError
from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.recipe.load import read_recipe
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.weights import prepared_as
from cnnbench.runs.facts import DataFacts, facts_in
from cnnbench.system import environment as provenance
from cnnbench.system import files, locks

RUNS = Path("runs")
# The whole recipe, in a folder that contains one run per compression stage.
STAGES = "stages.yaml"
ARCHITECTURE = "architecture.json"
# The files of the data set when the run started: lines of name:size:checksum.
LISTING = "data-files.txt.gz"


@dataclass(frozen=True)
class Run:
    """A run directory and the resolved recipe in it."""

    path: Path
    recipe: Recipe
    _read: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The contents of environment.json, read and verified once.

        Raises:
            RunError: the file is missing or damaged.
        """
        return read_environment(self.path) if self._read is None else self._read

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the epoch with the best validation score; without validation, the last."""
        return self.path / "best"

    @property
    def finished(self) -> bool:
        """Whether training is finished."""
        return (self.path / "finished.json").is_file()

    def must_match(self, recipe: Recipe) -> None:
        """Raises if a recipe differs from the run's own.

        The paths in it may be those of a project that was moved with the run. That of the images
        does not matter, as `must_match_data` compares the images. Of the same `model.weights`, the
        file need not be there: a recipe read without it takes the preprocessing that the run has.

        Raises:
            RunError: it differs; the message lists the changed lines.
        """
        if (path := getattr(self.recipe.data, "path", None)) and hasattr(recipe.data, "path"):
            data = recipe.data.model_copy(update={"path": path})
            recipe = recipe.model_copy(update={"data": data})
        moved = self.recipe.with_paths(self.beside).model_copy(update={"data": self.recipe.data})
        weights = recipe.model.weights
        is_same = weights in (self.recipe.model.weights, moved.model.weights)
        if weights and is_same and weights not in PRESETS and not Path(weights).is_file():
            recipe = prepared_as(recipe, self.recipe)
        if recipe in (self.recipe, moved):
            return
        lines = difflib.unified_diff(
            self.recipe.dump().splitlines(), recipe.dump().splitlines(), n=0, lineterm=""
        )
        changed = "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))
        raise RunError(f"the recipe changed since the run started\n{changed}", where=str(self.path))

    def must_match_data(self, now: DataFacts) -> None:
        """Raises if the data differs from the data that the run started with.

        Where the data is stored does not matter, nor what lies beside the images.

        Raises:
            RunError: something differs.
        """
        ignored = {"name", "data_dir", "counts", "pixels", "removed_files", "notes"}
        for key, before in self.data().model_dump(exclude=ignored).items():
            found = getattr(now, key)
            if before != found and not (key == "skipped_images" and _are_at(before, found)):
                raise RunError(
                    f"the data set changed: {key} was {before}, is {found}", where=str(self.path)
                )

    def must_match_code(self, *, replicas: int, force: bool) -> list[str]:
        """Raises if the code or the number of replicas changed since the run started.

        The code is the versions of the packages and the hash of cnnbench's source; a different
        commit with the same source is accepted.

        Args:
            replicas: current number of replicas.
            force: whether to accept changed code.

        Returns:
            The accepted differences, one line each.

        Raises:
            RunError: the number of replicas differs, or the code does and `force` is False.
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
                "the code changed since the run started\n" + "\n".join(changed),
                where=str(self.path),
                allowed="--force continues, but no longer bit for bit",
            )
        return [f"forced: {line}" for line in changed]

    def data(self) -> DataFacts:
        """Returns the facts of the data from environment.json.

        Raises:
            RunError: the file is missing or damaged.
        """
        return facts_in(self.environment, self.path)

    def settings(self) -> Settings:
        """Returns the TensorFlow settings of the training, from environment.json.

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
        """Returns the records of the compression stages that changed the recipe's model.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / ARCHITECTURE
        if not file.is_file():
            return []
        try:
            kept = json.loads(file.read_text())
            if not files.is_as_signed(kept):
                raise ValueError("the file was changed")
            return list(kept["stages"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"cannot read: {files.why(error)}", where=str(file)) from None

    def weights_sha256(self) -> str:
        """Returns the SHA-256 of the best weights' manifest, which contains that of the arrays.

        Raises:
            RunError: the run has no weights.
        """
        file = self.best / "manifest.json"
        try:
            return files.sha256(file)
        except FileNotFoundError as error:
            raise RunError("the run has no weights", where=str(file)) from error
        except OSError as error:
            raise RunError(f"cannot read: {files.why(error)}", where=str(file)) from error

    def others(self, *names: str) -> dict[str, Run]:
        """Returns the runs that this one depends on: "init", which it starts from, and "teacher".

        Args:
            names: the names to return; without any, all are returned.

        Raises:
            RunError: environment.json is damaged, or a run is missing or its weights changed.
        """
        kept: Any = self.environment.get("runs") or {}
        return {
            name: self._other(about["path"], about["weights_sha256"])
            for name, about in kept.items()
            if not names or name in names
        }

    def _other(self, path: str, weights_sha256: str) -> Run:
        """Returns the run that was at a path when this one started, wherever it is."""
        beside = self.path.absolute().parent / Path(path).name
        errors = []
        for place in dict.fromkeys([path, self.beside(path), str(beside)]):
            if not Path(place, "recipe.yaml").is_file():
                continue
            try:
                other = open_run(place)
                if other.weights_sha256() == weights_sha256:
                    return other
                what = f"the weights changed since {self.path} started"
                errors.append(RunError(what, where=place))
            except RunError as error:
                errors.append(error)
        raise (
            errors[0]
            if errors
            else RunError(
                f"it depends on the run {path}, which is gone",
                where=str(self.path),
                allowed="put that run, or a link to it, there or beside this one",
            )
        )

    @property
    def origin(self) -> str:
        """The absolute path at which the run started; of a run of an older version, its own."""
        return str(self.environment.get("path") or self.path.absolute())

    def beside(self, path: str) -> str:
        """Returns a path of when the run started, as if what is there had moved with the run."""
        return os.path.normpath(self.path.absolute() / os.path.relpath(path, self.origin))

    def now(self, path: str) -> Path:
        """Returns a path of when the run started; if nothing is there, where it moved with the run.

        If nothing is there either, the path is that of when the run started.
        """
        beside = self.beside(path)
        return Path(beside if not os.path.lexists(path) and os.path.lexists(beside) else path)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, one per epoch.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text().splitlines() if file.is_file() else []
            return [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot read: {files.why(error)}", where=str(file)) from None

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(self.path / "metrics.jsonl", text.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run against other processes; the kernel releases the lock of a dead process.

        On a file system without locks, a line on stderr says so.

        Raises:
            RunError: another process holds the lock, or removed the folder.
        """

        def refuse(holder: str) -> None:
            what = f"another process ({holder}) is writing to this run"
            raise RunError(what, where=str(self.path)) from None

        with contextlib.ExitStack() as stack:
            with files.storage_errors(self.path, "lock the run"):
                while True:
                    handle = locks.open_lock(self.path / "lock")
                    stack.callback(os.close, handle)
                    if not locks.lock(handle, refuse):
                        what = "its file system has no locks: let no other process write to it"
                        sys.stderr.write(f"{self.path}: {what}\n")
                    # A process that fails before `commit` deletes the lock file, possibly after
                    # it was opened here; a later process would then lock a new file.
                    if locks.is_at(handle, self.path / "lock"):
                        break
            yield


def open_run(path: str | Path) -> Run:
    """Opens a run directory; if it contains a run per compression stage, that of the last stage.

    Raises:
        RunError: it is not a run directory, is damaged, or has unfinished compression stages.

    Example:
        >>> import cnnbench
        >>> run = cnnbench.open_run("runs/digits")
        >>> run.finished, len(run.metrics())
        (True, 4)
    """
    with files.storage_errors(Path(path), "read"):
        return _open(Path(path))


def _open(path: Path) -> Run:
    """Opens a run directory, as `open_run`.

    Raises:
        RunError: as `open_run`.
        OSError: a file cannot be read.
    """
    if (path / STAGES).is_file():
        *_, path = folders = stage_folders(path, read_recipe(path / STAGES))
        if not (path / "finished.json").is_file():
            started = [str(each) for each in folders if (each / "recipe.yaml").is_file()]
            raise RunError(
                "not all compression stages are finished",
                where=str(path.parent),
                allowed=" or ".join(["--resume to continue", *started]),
            )
    recipe = path / "recipe.yaml"
    if not recipe.is_file():
        raise RunError("not a run directory: it has no recipe.yaml", where=str(path))
    environment = read_environment(path)
    facts_in(environment, path)
    with files.storage_errors(recipe, "read"):
        digest = files.sha256(recipe)
    if environment.get("recipe_sha256") != digest:
        raise RunError("the recipe was changed since the run started", where=str(recipe))
    try:
        return Run(path, read_recipe(recipe), environment)
    except RecipeError as error:
        raise RunError(f"cannot read the recipe:\n{error}") from None


def stage_folders(folder: Path, recipe: Recipe) -> list[Path]:
    """Returns the run directory of each compression stage of a recipe, inside `folder`."""
    names = [f"{number}-{spec.name}" for number, spec in enumerate(recipe.compress, start=1)]
    return [folder / name for name in names]


def _are_at(paths: Sequence[str], names: Sequence[str]) -> bool:
    """Returns whether paths, which runs of older versions have kept, end with these names."""
    ends = zip(paths, names, strict=False)
    return len(paths) == len(names) and all(
        f"/{unicodedata.normalize('NFC', path)}".endswith(f"/{name}") for path, name in ends
    )


def _changed_source(environment: Mapping[str, Any]) -> list[str]:
    """Returns at most one line that describes how cnnbench's source differs from a run's.

    A run without the hash of its source is of an older version.
    """
    before, commit = environment.get("code_sha256"), environment.get("git_commit")
    if before is not None and before == provenance.code_sha256():
        return []
    commit_now = provenance.git_commit()
    about = f" (git_commit was {commit}, is {commit_now})" if commit != commit_now else ""
    if before is None:
        return [f"the run has no code_sha256, as it was made by an older version{about}"]
    return [f"code_sha256 was {before}, is {provenance.code_sha256()}{about}"]


def read_environment(path: Path) -> dict[str, Any]:
    """Returns the contents of a run directory's environment.json.

    Raises:
        RunError: the file is missing, damaged or changed.
    """
    file = path / "environment.json"
    try:
        environment = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"cannot read: {files.why(error)}", where=str(file)) from None
    if not files.is_as_signed(environment):
        raise RunError("was changed since the run started", where=str(file))
    return environment
