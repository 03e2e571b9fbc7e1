"""The run directory: everything that one training wrote, and all that later commands read."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cnnbench import files, provenance
from cnnbench.errors import RecipeError, RunError, UsageError
from cnnbench.recipe import Recipe, read_recipe
from cnnbench.runtime import Settings

RUNS = Path("runs")
# The whole recipe, in a folder that has the runs of its stages.
STAGES = "stages.yaml"
ARCHITECTURE = "architecture.json"
# What is written before recipe.yaml makes a folder a run.
FIRST = {"lock", "environment.json", ARCHITECTURE}


class DataFacts(BaseModel):
    """What a run remembers of its data, so that its network can be used without them."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    fingerprint: str | None  # None: the weights were trained elsewhere
    classes: list[str]
    stored_channels: int
    input_shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    train_examples: int = 0
    validation_examples: int = 0
    skipped_images: list[str] = []
    data_dir: str | None = None
    color: str
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, data: Any, shape: Sequence[int], prepare: Any, **facts: Any) -> DataFacts:
        """Returns the facts of a Dataset, for a network's input shape and the Preprocess before."""
        return cls(
            name=data.name,
            fingerprint=data.fingerprint,
            classes=list(data.classes),
            stored_channels=data.shape[2],
            input_shape=list(shape),
            color=prepare.color,
            mean=list(prepare.mean),
            std=list(prepare.std),
            **facts,
        )


@dataclass(frozen=True)
class Run:
    """A run directory and the resolved recipe that lies in it."""

    path: Path
    recipe: Recipe

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

        Returns:
            What differs and is let through, a line each.

        Raises:
            RunError: something differs; versions are let through by force.
        """
        environment = _environment_of(self.path)
        kept: Any = environment.get("versions")
        before = kept if isinstance(kept, dict) else {}
        now: dict[str, Any] = provenance.versions() | {"git_commit": provenance.git_commit()}
        before = before | {"git_commit": environment.get("git_commit")}
        changed = [
            f"{key} was {before.get(key)}, is {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
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
        return _facts(_environment_of(self.path), self.path)

    def settings(self) -> Settings:
        """Returns how TensorFlow ran the training, from environment.json.

        Raises:
            RunError: the file is missing or damaged.
        """
        kept: Any = _environment_of(self.path).get("runtime")
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
        kept: Any = _environment_of(self.path).get("runs") or {}
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
        with contextlib.ExitStack() as stack:
            with files.storage_errors(self.path):
                while True:
                    handle = _open_lock(self.path / "lock")
                    stack.callback(os.close, handle)
                    _hold(handle, self.path)
                    # A run that could not begin takes its lock away, maybe after it was opened
                    # here; a later process would lock a new file.
                    if _is_at(handle, self.path / "lock"):
                        break
            yield


@contextlib.contextmanager
def new_run(path: Path | None, recipe: Recipe) -> Iterator[Run]:
    """Yields a run in a folder that is this process's own; it is there once `begin` was called.

    If that never comes, the folder is taken away again.

    Args:
        path: a folder that does not exist or is empty; None: a new one below runs/.
        recipe: what is going to be trained.

    Raises:
        RunError: there is something in the folder, it cannot be written, or another process has it.
    """
    made = path is None or not path.exists()
    with files.storage_errors(path or RUNS):
        if path is None:
            path = new_folder(recipe.name)
        else:
            path.mkdir(parents=True, exist_ok=True)
        before = {entry.name for entry in path.iterdir()}
    run = Run(path, recipe)
    with run.locked():
        try:
            # Now, for another process may have begun a run here before the lock was held. One that
            # was killed at its very start leaves no more than these.
            must_be_free(path)
            for partial in _leftovers(path):
                partial.unlink()
            yield run
        finally:
            if not (path / "recipe.yaml").is_file():
                for name in FIRST - before:
                    (path / name).unlink(missing_ok=True)
                if made:
                    with contextlib.suppress(OSError):  # another process has begun in it by now
                        path.rmdir()


def must_be_free(path: Path) -> None:
    """Refuses a folder in which there is more than a run that was killed at its very start left.

    Raises:
        RunError: there is, or it cannot be read.
    """
    with files.storage_errors(path):
        there = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if there - FIRST - {partial.name for partial in _leftovers(path)}:
        raise RunError(
            "the run directory is not empty", where=str(path), allowed="--resume continues a run"
        )


def _leftovers(path: Path) -> list[Path]:
    return [x for name in (*FIRST, "recipe.yaml") for x in files.leftovers(path / name)]


def begin(
    run: Run,
    data: DataFacts,
    runtime: Mapping[str, Any],
    *,
    architecture: Sequence[Mapping[str, Any]] = (),
    others: Mapping[str, Run] | None = None,
) -> None:
    """Writes environment.json, and last recipe.yaml, which makes the folder a run.

    Args:
        run: in a folder of its own.
        data: that is trained on.
        runtime: how TensorFlow runs.
        architecture: the records of the stages that made the network of what the recipe names.
        others: the runs that this one begins or learns from, by what the recipe calls them.
    """
    text = run.recipe.dump().encode()
    environment = provenance.describe() | {
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
    files.write_json(run.path / "environment.json", files.signed(environment))
    files.write_bytes(run.path / "recipe.yaml", text)


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
    environment = _environment_of(path)
    _facts(environment, path)
    try:
        digest = files.sha256(recipe)
    except OSError as error:
        raise RunError(f"cannot read: {error.strerror}", where=str(recipe)) from None
    if environment.get("recipe_sha256") != digest:
        raise RunError("the recipe was changed since the run began", where=str(recipe))
    try:
        return Run(path, read_recipe(recipe))
    except RecipeError as error:
        raise RunError(f"the recipe cannot be read any more:\n{error}") from None


def stage_folders(folder: Path, recipe: Recipe) -> list[Path]:
    """Returns where the run of each stage of a recipe lies, below its folder."""
    names = [f"{number}-{spec.name}" for number, spec in enumerate(recipe.compress, start=1)]
    return [folder / name for name in names]


def find_run(name: str) -> Run:
    """Returns the run of that path, or else the newest finished run of the recipe of that name.

    Raises:
        UsageError: there is none.
        RunError: the run is damaged.
    """
    path = Path(name).expanduser()
    if (path / "recipe.yaml").is_file() or (path / STAGES).is_file():
        return open_run(path)
    if "/" in name:
        raise UsageError(
            "there is no run", where=name, allowed="a run directory, or a recipe's name"
        )
    return newest_run(finished=True, name=name)


def newest_run(*, finished: bool, name: str | None = None) -> Run:
    """Returns the newest run below runs/ that is finished, or is not.

    Raises:
        UsageError: there is none.
    """
    # A recipe of several stages has a run for each, below one folder.
    found = [*RUNS.glob("*/recipe.yaml"), *RUNS.glob("*/[0-9]*/recipe.yaml")]
    candidates = sorted(found, key=lambda file: file.stat().st_mtime_ns)
    for file in reversed(candidates):
        done = (file.parent / "finished.json").is_file()
        if done == finished and name in (None, name_in(file)):
            return open_run(file.parent)
    kind = "finished run" if finished else "unfinished run"
    kind += f" of {name!r}" if name else ""
    raise UsageError(f"no {kind} below {RUNS}/", allowed="name a run directory, or train one")


def name_in(file: Path) -> str | None:
    """Returns the name in a recipe that a run kept; None if it cannot be read any more."""
    try:
        return read_recipe(file).name
    except (RecipeError, OSError):
        return None


def _open_lock(file: Path) -> int:
    # Not through a link, which could lead to any file of the user.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(file, flags, 0o644)


def _is_at(handle: int, file: Path) -> bool:
    """Tells whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), file.lstat())
    except FileNotFoundError:
        return False


def _hold(lock: int, path: Path) -> None:
    """Locks an open file for as long as it is open."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 100, 0).decode(errors="replace").strip() or "unknown"
        raise RunError(f"another process ({holder}) writes to this run", where=str(path)) from None
    with contextlib.suppress(OSError):  # who holds it is told as a courtesy
        os.ftruncate(lock, 0)
        os.write(lock, f"pid {os.getpid()}".encode())


def new_folder(name: str) -> Path:
    """Makes a folder below runs/ of that name and the time, with the first free number."""
    stem = RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _environment_of(path: Path) -> dict[str, Any]:
    file = path / "environment.json"
    try:
        environment = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"cannot be read: {error}", where=str(file)) from None
    if not files.is_as_signed(environment):
        raise RunError("was changed since the run began", where=str(file))
    return environment


def _facts(environment: dict[str, Any], path: Path) -> DataFacts:
    try:
        return DataFacts.model_validate(environment.get("data"))
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) or "data" for e in error.errors())
        raise RunError(
            f"environment.json is damaged: {wrong}", where=str(path / "environment.json")
        ) from None
