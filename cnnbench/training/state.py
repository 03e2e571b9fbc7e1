"""The state of a training: every variable that a checkpoint holds."""

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
    """A model and everything that changes with its weights.

    model: normalised images to the task's answer, then those of auxiliary heads and of hints.
    network: the same layers with the answer as the only output.
    optimizer: built for the model's trainable variables.
    averaged: a model like the first that has the moving averages of its weights; None without.
    averaged_network: of it, as `network` is of the model.
    slow: Lookahead's slow weights, one for each trainable variable; none without it.
    masking: the masks of a pruned network; None of another.
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
        """The network that is validated and kept: of the averages, where there are any."""
        return self.network if self.averaged_network is None else self.averaged_network

    def variables(self) -> dict[str, Any]:
        """Returns what a checkpoint holds, by its name there."""
        model = variables_by_name("model", self.model.variables)
        named = model | variables_by_name("optimizer", self.optimizer.variables)
        named |= variables_by_name("slow", self.slow)
        if self.masking is not None:
            named |= variables_by_name("mask", self.masking.variables)
        if self.averaged is not None:
            # Under the model's names: Keras numbers the layers of a second model.
            averages = (name.replace("model/", "average/", 1) for name in model)
            named |= dict(zip(averages, self.averaged.variables, strict=True))
        return named

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Returns copies of all variables by their names, to be written while training goes on.

        Raises:
            DivergedError: one of them is not finite.
        """
        arrays = {key: np.array(each.numpy()) for key, each in self.variables().items()}
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise diverged(f"{key} has a value that is not finite at step {step}")
        return arrays


def diverged(what: str) -> DivergedError:
    """Returns the error of a training that diverged, with what may help."""
    return DivergedError(
        what, allowed="a lower optimizer.lr or a longer schedule.warmup_epochs may help"
    )
