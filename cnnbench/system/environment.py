"""Provenance: the machine, the code and the command that a result comes of."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("cnnbench", "keras", "numpy", "tensorflow", "tensorflow-datasets", "ai-edge-litert")


def describe() -> dict[str, Any]:
    """Returns the time, the command, the versions, the machine and the commit of the code."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": versions(),
        "machine": machine(),
        "git_commit": git_commit(),
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


def git_commit() -> str | None:
    """Returns the commit of the code that runs, with + for changes to it; None outside git."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - fixed words
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", "__init__.py"):
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
