"""Train, measure and ship convolutional networks from one YAML recipe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnbench.evaluation.evaluate import evaluate
    from cnnbench.evaluation.predict import predict
    from cnnbench.exports.export import export
    from cnnbench.models.build import build_model
    from cnnbench.recipe.load import load_recipe
    from cnnbench.runs.run import open_run
    from cnnbench.training.stages import resume, train

# Imported when first used, so that `import cnnbench` costs nothing.
_HOMES = {
    "build_model": "cnnbench.models.build",
    "evaluate": "cnnbench.evaluation.evaluate",
    "export": "cnnbench.exports.export",
    "load_recipe": "cnnbench.recipe.load",
    "open_run": "cnnbench.runs.run",
    "predict": "cnnbench.evaluation.predict",
    "resume": "cnnbench.training.stages",
    "train": "cnnbench.training.stages",
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
