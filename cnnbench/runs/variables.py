"""Names Keras variables, and assigns the arrays of a checkpoint to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.errors import RunError
from cnnbench.models.build import HINT


def variables_by_name(kind: str, variables: Iterable[Any]) -> dict[str, Any]:
    """Names Keras variables by their place and path, so that the same code finds them again."""
    return {f"{kind}/{i}/{variable.path}": variable for i, variable in enumerate(variables)}


def kept_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the network's arrays among a checkpoint's; where there are averages, those instead.

    Layers that serve training alone, as the last of the model, are left out.
    """
    kept = {name: array for name, array in arrays.items() if f"/{HINT}" not in name}
    averages = {
        name.replace("average/", "model/", 1): array
        for name, array in kept.items()
        if name.startswith("average/")
    }
    return averages or {name: kept[name] for name in kept if name.startswith("model/")}


def assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: Path) -> None:
    """Gives variables the values of a checkpoint's arrays; arrays of other kinds are passed over.

    Raises:
        RunError: names or shapes differ; nothing is assigned then.
    """
    kinds = {name.partition("/")[0] for name in variables}
    saved = {k: v for k, v in arrays.items() if k.partition("/")[0] in kinds}
    wrong = set(variables) ^ set(saved)
    wrong |= {k for k in variables.keys() & saved if tuple(variables[k].shape) != saved[k].shape}
    if wrong:
        raise RunError(f"the weights are another network's: {sorted(wrong)[:5]}", where=str(where))
    for name, variable in variables.items():
        variable.assign(saved[name])
