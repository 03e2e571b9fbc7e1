"""Whether a result is what its TypedDict says: mypy cannot see into what a task adds."""

import types
from typing import (
    Any,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)


def problems(value: Any, kind: Any, place: str = "result") -> list[str]:
    """What differs from the type: missing and unknown keys, and values of other types."""
    if is_typeddict(kind):
        if type(value) is not dict:
            return [f"{place} is {value!r}"]
        hints = get_type_hints(kind, include_extras=True)
        missing = [name for name in hints if name not in value and is_required(kind, name)]
        found = [f"{place} has no {name}" for name in missing]
        found += [f"{place} has {name}" for name in value if name not in hints]
        for name in value.keys() & hints.keys():
            found += problems(value[name], bare(hints[name]), f"{place}.{name}")
        return found
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        each = [problems(value, option, place) for option in arguments]
        return [] if [] in each else each[0]
    if origin is list and isinstance(value, list):
        return [p for i, v in enumerate(value) for p in problems(v, arguments[0], f"{place}.{i}")]
    if origin is dict and isinstance(value, dict):
        return [p for k, v in value.items() for p in problems(v, arguments[1], f"{place}.{k}")]
    return [] if type(value) is kind else [f"{place} is {value!r}, not {kind}"]


def bare(hint: Any) -> Any:
    """The type without what says whether its key is required."""
    return get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint


def is_required(kind: Any, name: str) -> bool:
    """Whether a key is required: as the word at it says, or else as all keys of its class."""
    origin = get_origin(get_type_hints(kind, include_extras=True)[name])
    # Python does not look for these words in annotations that are strings.
    return origin is Required or (origin is not NotRequired and name in kind.__required_keys__)
