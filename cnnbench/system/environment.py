"""Provenance: the machine, the code and the command that produced a result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Traversable

PACKAGES = ("cnnbench", "keras", "numpy", "tensorflow", "tensorflow-datasets", "ai-edge-litert")

# Environment variables that can change numbers, and the beginnings of the names of others.
VARIABLES = frozenset(
    (
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_VISIBLE_DEVICES",
        "KERAS_BACKEND",
        "NVIDIA_TF32_OVERRIDE",
        "OMP_NUM_THREADS",
        "PYTHONHASHSEED",
        "XLA_FLAGS",
    )
)
FAMILIES = ("TF_", "KMP_", "MKL_", "ONEDNN_", "DNNL_")

# Beginnings of the names of those that a user is told of, for no recipe says them.
TOLD = (
    *("TF_XLA_FLAGS", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE", "TF_ENABLE_", "TF_DISABLE_"),
    *("TF_CUDNN_", "TF_CUBLAS_", "ONEDNN_", "DNNL_", "MKL_CBWR"),
)


def describe() -> dict[str, Any]:
    """Returns the time, command, versions, machine, variables, code hash and git commit."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": versions(),
        "machine": machine(),
        "variables": variables(),
        "code_sha256": code_sha256(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | installed


def variables() -> dict[str, str]:
    """Returns the environment variables that are set and can change numbers, by name."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in VARIABLES or name.startswith(FAMILIES)
    }


def notes() -> list[str]:
    """Returns a line on the variables that no recipe says; none without any."""
    said = [f"{key}={value}" for key, value in variables().items() if key.startswith(TOLD)]
    return [f"environment variables that can change results: {', '.join(said)}"] if said else []


def machine() -> dict[str, Any]:
    """Returns the CPU model, the number of cores, the memory in GiB and the operating system."""
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


@functools.cache
def code_sha256() -> str | None:
    """Returns the SHA-256 of the imported package's source, computed once per process.

    A checkout, an editable install, a regular install and a zip file give the same hash.
    """
    return sources_sha256(resources.files(__package__.partition(".")[0]))


def sources_sha256(root: Traversable) -> str | None:
    """Returns the SHA-256 of the paths and contents of all *.py files.

    Args:
        root: the folder of a package, on disk or inside a zip file.

    Returns:
        The hexadecimal hash; None if there are no *.py files.
    """
    sources = sorted(_sources(root, ""))
    if not sources:
        return None
    digest = hashlib.sha256()
    for path, content in sources:
        digest.update(path.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _sources(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    """Yields the path relative to the root, with slashes, and the content of each *.py file."""
    for entry in folder.iterdir():
        if entry.name.endswith(".py"):
            yield path + entry.name, entry.read_bytes()
        elif entry.name != "__pycache__" and entry.is_dir():
            yield from _sources(entry, f"{path}{entry.name}/")


def git_commit() -> str | None:
    """Returns the commit of the running code, with "+" if it has changes; None outside git."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - fixed arguments
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", "__init__.py"):
            return None  # installed inside another project's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
