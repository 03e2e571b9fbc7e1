"""How TensorFlow runs: chosen before it is imported, or before a model is built."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cnnbench.backend.private import uses_onednn
from cnnbench.errors import UsageError

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
THREADS = "TF_NUM_INTRAOP_THREADS"


@dataclass(frozen=True)
class Settings:
    """How TensorFlow runs a training.

    onednn: whether oneDNN's kernels are used on a CPU; None: as TensorFlow decides.
    xla: whether XLA compiles a training step.
    threads: that one operation may use; None: one a core.
    """

    onednn: bool | None = None
    xla: bool = False
    threads: int | None = None

    def environment(self) -> dict[str, str | None]:
        """Returns the variables that TensorFlow reads when it is imported; None is for unset."""
        return {
            ONEDNN: None if self.onednn is None else str(int(self.onednn)),
            THREADS: None if self.threads is None else str(self.threads),
        }

    @classmethod
    def of(cls, given: Any) -> Settings:
        """Returns what a recipe's `train.runtime` gives, which may be "auto"."""
        if given == "auto":
            return cls()
        return cls(given.onednn, bool(given.xla), given.threads)


@dataclass(frozen=True)
class Choice:
    """Settings, and why.

    reason: "recipe", "measured", "remembered", or why nothing was measured.
    seconds_per_step: of each candidate, by its name; empty where nothing was measured.
    notes: what a person should be told of how it was found.
    """

    settings: Settings
    reason: str
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def about(self) -> dict[str, Any]:
        """Returns what environment.json says, with what is so where TensorFlow decided."""
        return asdict(self.settings) | {
            "onednn": uses_onednn(),
            "reason": self.reason,
            "seconds_per_step": dict(self.seconds_per_step),
        }


def apply(settings: Settings) -> None:
    """Sets the environment variables that TensorFlow reads once, where it is not imported yet.

    They stay set, for TensorFlow reads some when it first computes. Settings that leave everything
    to TensorFlow set none.

    Raises:
        UsageError: it is imported already, with other settings.
    """
    wanted = {k: v for k, v in settings.environment().items() if v is not None}
    changed = {k: v for k, v in wanted.items() if os.environ.get(k) != v}
    if changed.get(ONEDNN) and "tensorflow" in sys.modules and settings.onednn == uses_onednn():
        del changed[ONEDNN]
    if changed and "tensorflow" in sys.modules:
        raise UsageError(
            "train.runtime cannot be changed once TensorFlow is imported",
            allowed="set " + " ".join(f"{k}={v}" for k, v in changed.items()) + " before",
        )
    os.environ.update(changed)
