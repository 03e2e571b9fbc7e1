"""The run directory: everything that one training wrote, and all that later commands read."""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cnnbench import files
from cnnbench.errors import RunError, UsageError
from cnnbench.recipe import Recipe, load_recipe

RUNS = Path("runs")
PACKAGES = ("cnnbench", "keras", "numpy", "tensorflow", "tensorflow-datasets", "ai-edge-litert")


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
        """The checkpoint of the epoch with the best validation top-1, or of the last one."""
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

    def environment(self) -> dict[str, Any]:
        """Returns what environment.json says of the machine, the versions and the data."""
        return self._read("environment.json")

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, an epoch each."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Writes metrics.jsonl whole."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        files.write_bytes(self.path / "metrics.jsonl", text.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process from writing here; the kernel frees the lock of a dead one.

        Raises:
            RunError: another process holds it.
        """
        with files.storage_errors(self.path), (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise RunError(
                    f"another process ({holder}) writes to this run", where=str(self.path)
                ) from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()}")
            lock.flush()
            yield

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {name}: {error}", where=str(self.path)) from None


def create_run(recipe: Recipe, path: Path | None, about: dict[str, Any]) -> Run:
    """Makes a run directory with the resolved recipe and environment.json.

    Args:
        recipe: what is going to be trained.
        path: a folder that does not exist or is empty; None: a new one below runs/.
        about: what else environment.json is to say.

    Raises:
        RunError: there is something in the folder, or it cannot be written.
    """
    if path is None:
        stem = RUNS / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stem if i == 1 else stem.with_name(f"{stem.name}-{i}") for i in range(1, 1000))
        path = next(name for name in names if not name.exists())
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(
            "the run directory is not empty", where=str(path), allowed="--resume continues a run"
        )
    files.write_json(path / "environment.json", {**_environment(), **about})
    files.write_bytes(path / "recipe.yaml", recipe.dump().encode())
    return Run(path, recipe)


def open_run(path: str | Path) -> Run:
    """Opens a run directory.

    Raises:
        RunError: it is none, or its recipe is damaged.
    """
    path = Path(path)
    if not (path / "recipe.yaml").is_file():
        raise RunError("not a run directory: it has no recipe.yaml", where=str(path))
    return Run(path, load_recipe(path / "recipe.yaml"))


def newest_run(*, finished: bool, name: str | None = None) -> Run:
    """Returns the newest run below runs/ that is finished, or is not.

    Raises:
        UsageError: there is none.
    """
    candidates = sorted(RUNS.glob("*/recipe.yaml"), key=lambda file: file.stat().st_mtime_ns)
    for file in reversed(candidates):
        done = (file.parent / "finished.json").is_file()
        if done == finished and (name is None or open_run(file.parent).recipe.name == name):
            return open_run(file.parent)
    kind = "finished run" if finished else f"unfinished run of {name!r}"
    raise UsageError(f"no {kind} below {RUNS}/", allowed="name a run directory")


def _environment() -> dict[str, Any]:
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": versions(),
        "machine": machine(),
        "git_commit": _git_commit(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide results."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | installed


def machine() -> dict[str, Any]:
    """Returns the processor's name, its cores, the memory in GiB and the system."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        cpu = next(names, cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 1024**3, 1),
        "system": platform.platform(),
    }


def _git_commit() -> str | None:
    """Returns the commit of the code that runs, with + for changes to it; None outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
