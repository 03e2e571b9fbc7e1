"""Parses YAML to a tree of values with line numbers, and dumps values to YAML.

Scalars follow the YAML 1.2 core schema: `no` is a string, `1e-3` is a number. A recipe is plain
data: anchors, aliases, tags, duplicate keys, deep nesting and large files are errors.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cnnbench.errors import Problem, RecipeError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 12


@dataclass
class Located:
    """A value (a scalar, or a list or dict of Located) and its file:line; of an override, its text.

    The text is what a key takes that wants a string, as in `--set data.path=2024`.
    """

    value: Any
    where: str
    text: str | None = None

    def plain(self) -> Any:
        """Returns the value without line numbers."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def at(self, path: tuple[Any, ...]) -> Located:
        """Returns the deepest node along a path; steps that do not exist are skipped."""
        node = self
        for step in path:
            value: Any = node.value
            if (isinstance(value, dict) and step in value) or (
                isinstance(value, list) and isinstance(step, int) and step < len(value)
            ):
                node = value[step]
        return node


def read(path: Path) -> Located:
    """Reads a recipe file.

    Raises:
        RecipeError: the file cannot be read, is too large, or is not YAML as described above.
    """
    try:
        if path.exists() and not path.is_file():
            _refuse(str(path), "not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        _refuse(str(path), f"cannot read the recipe: {error.strerror}")
    if len(data) > MAX_BYTES:
        _refuse(str(path), "too large", f"must be at most {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        _refuse(f"{path}:{line}", f"byte {error.start} is not valid UTF-8")
    return parse(text, str(path))


def parse(text: str, source: str) -> Located:
    """Parses YAML text.

    Args:
        text: the YAML.
        source: the name of the source in line numbers, as in `source:line`.

    Raises:
        RecipeError: the text is not YAML as described above.
    """
    problems: list[Problem] = []
    try:
        events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        next(events)  # the start of the stream
        if isinstance(next(events), yaml.StreamEndEvent):
            _refuse(source, "empty")
        tree = _node(next(events), events, source, problems, 0)
        next(events)  # the end of the document
        if not isinstance(end := next(events), yaml.StreamEndEvent):
            _refuse(_place(source, end), "a second document", "must be one document")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = _at(source, mark) if mark else source
        _refuse(where, f"not valid YAML: {getattr(error, 'problem', None) or error}")
    if problems:
        raise RecipeError(problems)
    return tree


def override(tree: Located, assignment: str) -> None:
    """Sets one value in the tree, as in `--set train.epochs=3`; list items have an index as key.

    A value that starts with a bracket, a brace or a quotation mark is YAML, and so is one of
    several lines that is a list or has keys. Any other is a number, a boolean, null or text as it
    stands, in which `#`, `:`, `@` and the like mean nothing.

    Raises:
        RecipeError: the assignment is malformed, or its parent is neither a section nor a list.
    """
    place = f"--set {assignment}"
    dotted, equals, text = assignment.partition("=")
    if not equals or not all(dotted.split(".")):
        _refuse(place, "not an assignment", "write it as --set key.key=value")
    if dotted.count(".") >= MAX_DEPTH:
        _refuse(
            f"--set {assignment[:80]}…", "nested too deeply", f"must be at most {MAX_DEPTH} levels"
        )
    *parents, last = (
        int(key) if re.fullmatch("[0-9]{1,9}", key) else key for key in dotted.split(".")
    )
    node = tree
    for step in parents:
        if isinstance(node.value, dict) and isinstance(step, str):
            if not isinstance(node.value.get(step, Located(None, "")).value, dict | list):
                node.value[step] = Located({}, place)
            node = node.value[step]
        else:
            node = _item(node, step, place)
    value = _argument(text.rstrip("\r\n"), place)
    for child in _walk(value):
        child.where = place
    if isinstance(node.value, dict) and isinstance(last, str):
        node.value[last] = value
    else:
        _item(node, last, place)
        node.value[last] = value


def _argument(text: str, place: str) -> Located:
    if any("\ud800" <= character <= "\udfff" for character in text):
        _refuse(place, "not valid UTF-8", "a recipe is text in UTF-8, and so are the paths in it")
    stripped = text.strip()
    if stripped.startswith(("[", "{", '"', "'")):
        try:
            return Located(parse(stripped, place).value, place, text)
        except RecipeError as error:
            (problem,) = error.problems
            hint = "text that begins so is written in quotation marks of its own: '\"…\"'"
            _refuse(place, problem.what, problem.allowed or hint)
    if "\n" in stripped:
        parsed = parse(text, place)
        return Located(parsed.value if isinstance(parsed.value, dict | list) else text, place, text)
    value = _resolved(stripped)
    return Located(text if isinstance(value, str) else value, place, text)


def dump(plain: Mapping[str, Any]) -> str:
    """Returns YAML text, always the same for the same values, that `parse` reads back."""
    return yaml.dump(
        dict(plain),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=96,
        default_flow_style=None,
    )


class _CoreResolver(yaml.resolver.BaseResolver):
    """Resolves scalars as YAML 1.2 does (section 10.3); PyYAML follows YAML 1.1."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]{1,30}", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
):
    _CoreResolver.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )

_CONVERT: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class _Dumper(
    yaml.emitter.Emitter,
    yaml.serializer.Serializer,
    yaml.representer.SafeRepresenter,
    _CoreResolver,
):
    def __init__(self, stream: Any, **options: Any):
        styles = {k: options.pop(k) for k in ("default_flow_style", "default_style", "sort_keys")}
        yaml.emitter.Emitter.__init__(
            self, stream, **{k: options[k] for k in ("width", "allow_unicode")}
        )
        yaml.serializer.Serializer.__init__(self)
        yaml.representer.SafeRepresenter.__init__(self, **styles)
        _CoreResolver.__init__(self)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _node(
    event: Any, events: Iterator[Any], source: str, problems: list[Problem], depth: int
) -> Located:
    where = _place(source, event)
    if depth > MAX_DEPTH:
        _refuse(where, "nested too deeply", f"must be at most {MAX_DEPTH} levels")
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        name = event.anchor
        _refuse(where, f"anchor or alias {name!r}", "anchors and aliases are not allowed")
    if event.tag:
        _refuse(where, f"tag {event.tag!r}", "tags are not allowed")
    if isinstance(event, yaml.ScalarEvent):
        _must_be_unicode(event.value, where)
        return Located(_scalar(event), where)
    if isinstance(event, yaml.SequenceStartEvent):
        items = itertools.takewhile(lambda e: not isinstance(e, yaml.SequenceEndEvent), events)
        return Located([_node(e, events, source, problems, depth + 1) for e in items], where)
    mapping: dict[str, Located] = {}
    for key_event in events:
        if isinstance(key_event, yaml.MappingEndEvent):
            break
        key = _node(key_event, events, source, problems, depth + 1)
        value = _node(next(events), events, source, problems, depth + 1)
        if not isinstance(key.value, str):
            problems.append(Problem(key.where, f"key {key.plain()!r}", "keys must be strings"))
        elif key.value in mapping:
            first = mapping[key.value].where
            problems.append(Problem(key.where, f"duplicate key {key.value!r}", f"first at {first}"))
        else:
            mapping[key.value] = Located(value.value, key.where)
    return Located(mapping, where)


def _scalar(event: yaml.ScalarEvent) -> Any:
    return _resolved(event.value) if event.implicit[0] else event.value


def _resolved(text: str) -> Any:
    resolver: Any = _CoreResolver()
    tag = resolver.resolve(yaml.ScalarNode, text, (True, False))
    return _CONVERT[tag.rpartition(":")[2]](text)


def _must_be_unicode(text: str, where: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        _refuse(where, "half of a surrogate pair", "must be valid Unicode")


def _item(node: Located, step: str | int, place: str) -> Located:
    if isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
        item: Located = node.value[step]
        return item
    kind = f"a list of {len(node.value)}" if isinstance(node.value, list) else "not a section"
    return _refuse(place, f"{step!r} cannot be set: its parent is {kind}")


def _walk(node: Located) -> Iterator[Located]:
    yield node
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, dict | list):
        for child in children:
            yield from _walk(child)


def _place(source: str, event: Any) -> str:
    return _at(source, event.start_mark)


def _at(source: str, mark: Any) -> str:
    return source if source.startswith("--set") else f"{source}:{mark.line + 1}"


def _refuse(where: str, what: str, allowed: str | None = None) -> NoReturn:
    raise RecipeError([Problem(where, what, allowed)])
