"""TensorFlow's runtime settings, applied before it is imported or before a model is built."""

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
    """TensorFlow's runtime settings for training.

    Attributes:
        onednn: whether to use oneDNN kernels on a CPU; None for TensorFlow's default.
        xla: whether XLA compiles the training step.
        threads: maximum threads per operation; None for one per core.
    """

    onednn: bool | None = None
    xla: bool = False
    threads: int | None = None

    def environment(self) -> dict[str, str | None]:
        """Returns the variables that TensorFlow reads at import; None means unset."""
        return {
            ONEDNN: None if self.onednn is None else str(int(self.onednn)),
            THREADS: None if self.threads is None else str(self.threads),
        }

    @classmethod
    def of(cls, given: Any) -> Settings:
        """Returns the settings of a recipe's `train.runtime`, which may be "auto"."""
        if given == "auto":
            return cls()
        return cls(given.onednn, bool(given.xla), given.threads)


@dataclass(frozen=True)
class Choice:
    """The chosen settings and the reason for them.

    Attributes:
        reason: "recipe", "measured", "remembered", or why nothing was measured.
        seconds_per_step: measured time by candidate name; empty if nothing was measured.
        notes: messages for the user about how the settings were found.
    """

    settings: Settings
    reason: str
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def about(self) -> dict[str, Any]:
        """Returns the entry for environment.json, with the actual value of `onednn`."""
        return asdict(self.settings) | {
            "onednn": uses_onednn(),
            "reason": self.reason,
            "seconds_per_step": dict(self.seconds_per_step),
        }


def apply(settings: Settings) -> None:
    """Sets the environment variables that TensorFlow reads once, before it is imported.

    They stay set, because TensorFlow reads some at its first computation. Default settings set no
    variable.

    Raises:
        UsageError: TensorFlow is already imported, with other settings.
    """
    wanted = {k: v for k, v in settings.environment().items() if v is not None}
    changed = {k: v for k, v in wanted.items() if os.environ.get(k) != v}
    if changed.get(ONEDNN) and "tensorflow" in sys.modules and settings.onednn == uses_onednn():
        del changed[ONEDNN]
    if changed and "tensorflow" in sys.modules:
        raise UsageError(
            "train.runtime cannot be changed after TensorFlow is imported",
            allowed="set " + " ".join(f"{k}={v}" for k, v in changed.items()) + " first",
        )
    os.environ.update(changed)
