"""The training state: all variables that a checkpoint contains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnbench.errors import DivergedError
from cnnbench.runs.variables import variables_by_name

if TYPE_CHECKING:
    from cnnbench.compression.masking import Masking


@dataclass(frozen=True)
class State:
    """A model and all variables that training updates with it.

    model: maps normalized images to the task's output, then those of auxiliary heads and hints.
    network: the same layers with the task's output only.
    optimizer: built for the model's trainable variables.
    averaged: a copy of the model with the moving averages of its weights; None: no averages.
    averaged_network: the layers of `averaged` with the task's output only.
    slow: Lookahead's slow weights, one per trainable variable; empty without Lookahead.
    masking: the masks of a pruned network; None if it is not pruned.
    """

    model: Any
    network: Any
    optimizer: Any
    averaged: Any = None
    averaged_network: Any = None
    slow: Sequence[Any] = ()
    masking: Masking | None = None

    @property
    def validated(self) -> Any:
        """The network to validate and save: that of the averages, if there are any."""
        return self.network if self.averaged_network is None else self.averaged_network

    def variables(self) -> dict[str, Any]:
        """Returns all variables that a checkpoint contains, by name."""
        model = variables_by_name("model", self.model.variables)
        named = model | variables_by_name("optimizer", self.optimizer.variables)
        named |= variables_by_name("slow", self.slow)
        if self.masking is not None:
            named |= variables_by_name("mask", self.masking.variables)
        if self.averaged is not None:
            # Uses the model's names, because Keras numbers the layers of a second model.
            averages = (name.replace("model/", "average/", 1) for name in model)
            named |= dict(zip(averages, self.averaged.variables, strict=True))
        return named

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Returns copies of all variables by name, which later steps do not change.

        Args:
            step: the current step, for error messages.

        Raises:
            DivergedError: a value is not finite.
        """
        arrays = {key: np.array(each.numpy()) for key, each in self.variables().items()}
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise diverged(f"{key} has a value that is not finite at step {step}")
        return arrays


def diverged(what: str) -> DivergedError:
    """Returns the error for a training that diverged, with advice."""
    return DivergedError(
        what, allowed="a lower optimizer.lr or a longer schedule.warmup_epochs may help"
    )
