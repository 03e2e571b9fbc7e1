"""Names of Keras variables in checkpoints, and assigning saved arrays to variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.errors import RunError
from cnnbench.models.build import HINT


def variables_by_name(kind: str, variables: Iterable[Any]) -> dict[str, Any]:
    """Returns variables by names made of their index and path, stable for the same code."""
    return {f"{kind}/{i}/{variable.path}": variable for i, variable in enumerate(variables)}


def kept_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights of the network from a checkpoint: the moving averages, if there are any.

    Hint layers, which are used only in training, are left out.
    """
    kept = {name: array for name, array in arrays.items() if f"/{HINT}" not in name}
    averages = {
        name.replace("average/", "model/", 1): array
        for name, array in kept.items()
        if name.startswith("average/")
    }
    return averages or {name: kept[name] for name in kept if name.startswith("model/")}


def assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: Path) -> None:
    """Assigns the arrays of a checkpoint to variables; arrays of other kinds are ignored.

    Args:
        variables: variables by name, from `variables_by_name`.
        arrays: the arrays of a checkpoint by name.
        where: the path to name in errors.

    Raises:
        RunError: names or shapes differ; nothing is assigned.
    """
    kinds = {name.partition("/")[0] for name in variables}
    saved = {k: v for k, v in arrays.items() if k.partition("/")[0] in kinds}
    wrong = set(variables) ^ set(saved)
    wrong |= {k for k in variables.keys() & saved if tuple(variables[k].shape) != saved[k].shape}
    if wrong:
        raise RunError(
            f"the weights belong to another network: {sorted(wrong)[:5]}", where=str(where)
        )
    for name, variable in variables.items():
        variable.assign(saved[name])
