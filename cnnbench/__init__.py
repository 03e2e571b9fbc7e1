"""Train, measure and ship convolutional networks from one YAML recipe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnbench.chain import resume, train
    from cnnbench.evaluation import evaluate
    from cnnbench.exports import export
    from cnnbench.models import build_model
    from cnnbench.prediction import predict
    from cnnbench.recipe import load_recipe
    from cnnbench.run import open_run

# Imported when first used, so that `import cnnbench` costs nothing.
_HOMES = {
    "build_model": "cnnbench.models",
    "evaluate": "cnnbench.evaluation",
    "export": "cnnbench.exports",
    "load_recipe": "cnnbench.recipe",
    "open_run": "cnnbench.run",
    "predict": "cnnbench.prediction",
    "resume": "cnnbench.chain",
    "train": "cnnbench.chain",
}

__all__ = [
    "build_model",
    "evaluate",
    "export",
    "load_recipe",
    "open_run",
    "predict",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
