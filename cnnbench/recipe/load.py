"""Reads recipes: from YAML to a checked recipe, or an error with every problem."""

from __future__ import annotations

from pathlib import Path

from pydantic import (
    ValidationError,
)

from cnnbench.errors import Problem, RecipeError
from cnnbench.recipe import checks, yaml_tree
from cnnbench.recipe.problems import as_problem, merged
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.yaml_tree import Located

# Put into words; a recipe that has more is none.
MAX_PROBLEMS = 200


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a YAML file.
        overrides: assignments such as `train.epochs=3`, checked as the file is.

    Raises:
        RecipeError: with every problem found, each with its file:line and what was allowed.
    """
    tree = yaml_tree.read(Path(path))
    for assignment in overrides:
        yaml_tree.override(tree, assignment)
    return check(tree)


def parse_recipe(text: str) -> Recipe:
    """Reads back what `Recipe.dump` wrote."""
    return _validated(yaml_tree.parse(text, "recipe"))


def read_recipe(path: Path) -> Recipe:
    """Reads back a file that has what `Recipe.dump` wrote.

    That its sections fit each other was seen to before; a smoke run may begin with a stage that
    otherwise needs a trained network.

    Raises:
        RecipeError: it has something else.
    """
    return _validated(yaml_tree.read(path))


def check(tree: Located) -> Recipe:
    """Turns a located tree into a recipe, or raises RecipeError with every problem in it."""
    recipe = _validated(tree)
    if problems := checks.problems(recipe):
        raise RecipeError(problems)
    return recipe


def _validated(tree: Located) -> Recipe:
    """Turns a located tree into a recipe whose sections are each right by themselves."""
    if not isinstance(tree.value, dict):
        raise RecipeError([Problem(tree.where, "not a mapping", "a recipe has keys and values")])
    try:
        return Recipe.model_validate(tree.plain()).read_from(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [as_problem(detail, tree) for detail in found[:MAX_PROBLEMS]]
        if more := len(found) - len(problems):
            problems.append(Problem(tree.where, f"{more} more problems"))
        raise RecipeError(merged(problems)) from None
