"""Imports published weights as a run that can be evaluated and exported like a trained one."""

from __future__ import annotations

from pathlib import Path

from cnnbench.backend import session
from cnnbench.data.open import Access, describe_dataset, open_dataset
from cnnbench.data.preprocess import preprocess
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model, without_auxiliary
from cnnbench.models.pretrained import load
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import input_shape
from cnnbench.runs import checkpoint
from cnnbench.runs import variables as variables_module
from cnnbench.runs.checkpoint import Checkpoint
from cnnbench.runs.create import commit, new_run
from cnnbench.runs.facts import DataFacts
from cnnbench.runs.run import Run
from cnnbench.system import files


@session.isolated()
def import_weights(
    recipe: Recipe, *, access: Access | None = None, run_dir: Path | None = None
) -> Run:
    """Creates a finished run from the weights that a recipe starts from, without training.

    The data set is opened only if its class names are not known without it.

    Args:
        recipe: a recipe with `model.weights`.
        access: where data sets are stored.
        run_dir: a folder that does not exist or is empty; None: a new one below runs/.

    Raises:
        UsageError: the recipe names no weights, or they do not fit the network or its number of
            classes.
        DataError: the data set is needed but missing, or a preset cannot be downloaded.
        RunError: the run directory cannot be written.
    """
    recipe = recipe.absolute()
    if recipe.compress or recipe.init:
        raise UsageError(
            "init and compress are for training", allowed="import a recipe without them"
        )
    if recipe.model.weights is None:
        raise UsageError(
            "the recipe names no weights to import",
            allowed="set model.weights to a preset (cnnbench list presets) or a file",
        )
    with recipe.located():
        data = describe_dataset(recipe.data) or open_dataset(recipe.data, access or Access())
        shape = input_shape(recipe.data, data.shape)
    session.prepare(seed=recipe.seed, deterministic=False)
    with new_run(run_dir, recipe) as run:
        head_size = recipe.task.head_size(data.classes)
        with session.precision("float32"):
            model = build_model(recipe.model, shape, head_size, auxiliary=True)
        with recipe.located():
            load.start_from(without_auxiliary(model), recipe.model, whole=True)
            facts = DataFacts.of(data, shape, preprocess(data, recipe.data))
        commit(run, facts, {})
        variables = variables_module.variables_by_name("model", model.variables)
        arrays = {name: variable.numpy() for name, variable in variables.items()}
        checkpoint.save(run.best, Checkpoint(arrays, {"step": 0, "epoch": 0, "validation": None}))
        run.write_metrics([])
        files.write_json(run.path / "finished.json", {"step": 0, "epochs": 0})
    return run
