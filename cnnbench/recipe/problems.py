"""Converts pydantic's errors to problems with file, line and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel

from cnnbench.errors import Problem
from cnnbench.recipe.recipe import Recipe
from cnnbench.recipe.sections import Section
from cnnbench.recipe.yaml_tree import Located
from cnnbench.registry.kinds import (
    AUGMENTATIONS,
    COMPRESSIONS,
    DATASETS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
)
from cnnbench.registry.registry import did_you_mean


def as_problem(detail: Any, tree: Located) -> Problem:
    """Converts one of pydantic's errors to a problem in terms of the YAML file."""
    loc, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    path, section = _resolve(loc, tree)
    node = tree.at(tuple(path))
    dotted = ".".join(map(str, path)) or "recipe"
    given = repr(node.plain())[:80]
    if kind == "extra_forbidden":
        allowed = did_you_mean(str(loc[-1]), section.model_fields if section else ())
        return Problem(node.where, f"unknown key {dotted!r}", allowed)
    if kind == "missing":
        return Problem(node.where, f"{dotted!r} is missing")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        if "tag" not in context:
            return Problem(node.where, f"{dotted}: no name", "write {name: …, options…}")
        names = [name.strip(" '") for name in context["expected_tags"].split(",")]
        where = tree.at((*path, "name")).where
        return Problem(
            where, f"unknown {dotted} {context['tag']!r}", did_you_mean(context["tag"], names)
        )
    if kind == "string_type" and isinstance(node.value, bool | int | float):
        return Problem(
            node.where, f"{dotted}: {given}", 'must be text: put it in "quotation marks"'
        )
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = re.sub(r"a valid dictionary or (object|instance of \w+)", "a section", message)
    return Problem(node.where, f"{dotted}: {given}", message)


def take_texts(details: Sequence[Any], tree: Located) -> bool:
    """Takes the text of overrides, such as 2024 or ~, where a string is wanted.

    Returns:
        Whether there was any.
    """
    taken = False
    for detail in details:
        node = tree.at(tuple(_resolve(detail["loc"], tree)[0]))
        if detail["type"] == "string_type" and node.text is not None and node.value != node.text:
            node.value, taken = node.text, True
    return taken


def merged(problems: list[Problem]) -> list[Problem]:
    """Merges the problems that the members of a union report for the same value."""
    allowed: dict[tuple[str, str], dict[str | None, None]] = {}
    for problem in problems:
        allowed.setdefault((problem.where, problem.what), {})[problem.allowed] = None
    return [
        Problem(where, what, " or ".join(filter(None, each)) or None)
        for (where, what), each in allowed.items()
    ]


def _resolve(loc: tuple[Any, ...], tree: Located) -> tuple[list[Any], type[BaseModel] | None]:
    """Converts pydantic's location of an error to a path in the YAML.

    A location also has steps without a key in the YAML: the name of a registry entry or the member
    of a union.

    Args:
        loc: the location in pydantic's error.
        tree: the recipe.

    Returns:
        The path, and the section that contains its last key, if it is one with fixed keys.
    """
    path: list[Any] = []
    section: type[BaseModel] | None = Recipe
    registries = {
        "model": MODELS, "data": DATASETS, "augment": AUGMENTATIONS, "loss": LOSSES,
        "optimizer": OPTIMIZERS, "schedule": SCHEDULES,
        "compress": COMPRESSIONS,
    }  # fmt: skip
    for i, step in enumerate(loc):
        parent = tree.at(tuple(path))
        last = i == len(loc) - 1
        if isinstance(step, int):
            path.append(step)
        elif (
            section is None
            and path[0] in registries
            and isinstance(parent.value, dict)
            and "name" in parent.value
            and step == parent.value["name"].value
        ):
            section = registries[path[0]].spec_type(step)
        elif section is not None and (step in section.model_fields or last):
            path.append(step)
            if not last:
                section = _section_of(section, step)
    return path, section


def _section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = section.model_fields[key].annotation
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None
