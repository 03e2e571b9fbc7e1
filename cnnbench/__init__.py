"""Train, measure, compress and export convolutional networks from one YAML recipe."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnbench.backend.settings import Choice, Settings
    from cnnbench.data.open import Access
    from cnnbench.errors import CnnbenchError
    from cnnbench.evaluation.compare import Comparison, ComparisonRow, compare
    from cnnbench.evaluation.evaluate import Evaluation, evaluate
    from cnnbench.evaluation.predict import Prediction, predict
    from cnnbench.exports.export import ExportRow, export
    from cnnbench.exports.options import ExportOptions
    from cnnbench.models.build import build_model
    from cnnbench.recipe.load import load_recipe
    from cnnbench.recipe.recipe import Recipe
    from cnnbench.report.describe import ModelRow, list_models
    from cnnbench.runs.run import Run, open_run
    from cnnbench.training.callbacks import Callbacks
    from cnnbench.training.stages import resume, train

# Imported on first use, so that `import cnnbench` is fast.
_MODULES = {
    "Access": "cnnbench.data.open",
    "Callbacks": "cnnbench.training.callbacks",
    "Choice": "cnnbench.backend.settings",
    "CnnbenchError": "cnnbench.errors",
    "Comparison": "cnnbench.evaluation.compare",
    "ComparisonRow": "cnnbench.evaluation.compare",
    "Evaluation": "cnnbench.evaluation.evaluate",
    "ExportOptions": "cnnbench.exports.options",
    "ExportRow": "cnnbench.exports.export",
    "ModelRow": "cnnbench.report.describe",
    "Prediction": "cnnbench.evaluation.predict",
    "Recipe": "cnnbench.recipe.recipe",
    "Run": "cnnbench.runs.run",
    "Settings": "cnnbench.backend.settings",
    "build_model": "cnnbench.models.build",
    "compare": "cnnbench.evaluation.compare",
    "evaluate": "cnnbench.evaluation.evaluate",
    "export": "cnnbench.exports.export",
    "list_models": "cnnbench.report.describe",
    "load_recipe": "cnnbench.recipe.load",
    "open_run": "cnnbench.runs.run",
    "predict": "cnnbench.evaluation.predict",
    "resume": "cnnbench.training.stages",
    "train": "cnnbench.training.stages",
}

__all__ = [
    "Access",
    "Callbacks",
    "Choice",
    "CnnbenchError",
    "Comparison",
    "ComparisonRow",
    "Evaluation",
    "ExportOptions",
    "ExportRow",
    "ModelRow",
    "Prediction",
    "Recipe",
    "Run",
    "Settings",
    "build_model",
    "compare",
    "evaluate",
    "export",
    "list_models",
    "load_recipe",
    "open_run",
    "predict",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
