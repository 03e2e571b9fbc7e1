"""Loads recipes from YAML, and reports all problems of an invalid recipe at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from cnnbench.errors import Problem, RecipeError
from cnnbench.recipe import checks, yaml_tree
from cnnbench.recipe.problems import as_problem, merged, take_texts
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.weights import with_preprocessing
from cnnbench.recipe.yaml_tree import Located

# Further problems are only counted.
MAX_PROBLEMS = 200


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a YAML file.
        overrides: assignments such as `train.epochs=3`, checked like the file.

    Raises:
        RecipeError: the recipe is invalid; lists all problems with file:line and what is allowed.

    Example:
        >>> import cnnbench
        >>> recipe = cnnbench.load_recipe("tiny.yaml", ("train.steps=2",))
        >>> recipe.train.steps
        2
    """
    tree = yaml_tree.read(Path(path))
    for assignment in overrides:
        yaml_tree.override(tree, assignment)
    return check(tree)


def parse_recipe(text: str) -> Recipe:
    """Parses the text that `Recipe.dump` returned.

    Raises:
        RecipeError: the text is not a valid recipe.
    """
    return _validated(yaml_tree.parse(text, "recipe"))


def read_recipe(path: Path) -> Recipe:
    """Reads a file that contains the text from `Recipe.dump`.

    The checks across sections are not repeated: a smoke run may start with a compression stage
    that otherwise needs a trained network.

    Raises:
        RecipeError: the file is not a valid recipe.
    """
    return _validated(yaml_tree.read(path))


def check(tree: Located) -> Recipe:
    """Returns the recipe in a tree, with the preprocessing of its weights where it sets none.

    Raises:
        RecipeError: all its problems.
    """
    recipe = _validated(tree)
    _must_fit(recipe)
    filled = with_preprocessing(recipe)
    if filled is not recipe:
        _must_fit(filled)
    return filled


def _must_fit(recipe: Recipe) -> None:
    """Raises RecipeError if sections of a recipe do not fit each other."""
    if problems := checks.problems(recipe):
        raise RecipeError(problems)


def _validated(tree: Located) -> Recipe:
    """Returns the recipe in a tree, with each section checked by itself."""
    if not isinstance(tree.value, dict):
        raise RecipeError([Problem(tree.where, "not a mapping", "a recipe has keys and values")])
    try:
        return Recipe.model_validate(tree.plain()).read_from(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        if take_texts(found, tree):
            return _validated(tree)
        problems = [as_problem(detail, tree) for detail in found[:MAX_PROBLEMS]]
        if more := len(found) - len(problems):
            problems.append(Problem(tree.where, f"{more} more problems"))
        raise RecipeError(merged(problems)) from None
