"""Registries of the components that a recipe names.

The program passes a builder's positional parameters. Its keyword-only parameters are the options
that a recipe can set; their annotations and defaults define the schema of the options.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, create_model

from cnnbench.errors import UsageError

Builder = TypeVar("Builder", bound=Callable[..., Any])


class Spec(BaseModel):
    """A component named by a recipe, with its options, such as `{name: sgd, lr: 0.1}`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    # The builder's own options, without those shared by all components of the kind.
    option_names: ClassVar[tuple[str, ...]] = ()

    name: str

    def options(self) -> dict[str, Any]:
        """Returns the builder's keyword arguments."""
        return {option: getattr(self, option) for option in self.option_names}


@dataclass(frozen=True)
class Entry:
    """A registered component: its builder, and the facts known about it without building it."""

    name: str
    build: Callable[..., Any]
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def summary(self) -> str:
        """The first line of the builder's docstring."""
        return (inspect.getdoc(_unwrap(self.build)) or "").partition("\n")[0]


class Registry:
    """Builders of one kind, by name.

    Importing the registry's module or, if it is a package, all modules in it, registers them.
    """

    def __init__(self, kind: str, module: str, base: type[Spec] = Spec):
        self.kind, self._module, self.base = kind, module, base
        self._entries: dict[str, Entry] = {}
        self._specs: dict[str, type[Spec]] = {}

    def add(self, name: str, build: Callable[..., Any], **facts: Any) -> None:
        """Registers a builder; the name must not be taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = Entry(name, build, MappingProxyType(facts))

    def register(self, name: str, **facts: Any) -> Callable[[Builder], Builder]:
        """Returns a decorator that registers a builder."""

        def decorate(build: Builder) -> Builder:
            self.add(name, build, **facts)
            return build

        return decorate

    def names(self) -> list[str]:
        """Returns every registered name, sorted."""
        package = importlib.import_module(self._module)
        for found in pkgutil.iter_modules(getattr(package, "__path__", ())):
            if not found.ispkg:
                importlib.import_module(f"{self._module}.{found.name}")
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """Returns the entry with the given name.

        Raises:
            UsageError: the name is unknown; the message suggests similar names.
        """
        if name not in self._entries:
            names = self.names()
            if name not in names:
                raise UsageError(f"unknown {self.kind} {name!r}", allowed=did_you_mean(name, names))
        return self._entries[name]

    def build(self, spec: Spec, *context: Any) -> Any:
        """Calls the builder that a spec names, with positional `context` and the spec's options."""
        return self.get(spec.name).build(*context, **spec.options())

    def spec(self, name: str, **options: Any) -> Spec:
        """Returns the validated spec of one component."""
        return self.spec_type(name)(name=name, **options)

    def spec_type(self, name: str) -> type[Spec]:
        """Returns the pydantic model of a component's options, from its builder's signature."""
        if name not in self._specs:
            build = self.get(name).build
            options = _keyword_only(build)
            fields: dict[str, Any] = {"name": (Literal[name], name), **options}
            title = f"{self.kind.title().replace(' ', '')}_{name}"
            # The annotations are strings, which pydantic evaluates in the builder's module.
            module = _unwrap(build).__module__
            spec = create_model(title, __base__=self.base, __module__=module, **fields)
            spec.option_names = tuple(options)
            self._specs[name] = spec
        return self._specs[name]

    def any_spec(self) -> Any:
        """Returns the type of a recipe field that can name any component of this registry."""
        types = tuple(self.spec_type(name) for name in self.names())
        return Annotated[Union[types], Field(discriminator="name")]  # noqa: UP007 - of a tuple


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Returns the text for "allowed": the words most similar to `word`, or all of them."""
    words = list(words)
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "one of " + ", ".join(words) if words else "nothing is allowed here"


def _unwrap(build: Callable[..., Any]) -> Callable[..., Any]:
    return build.func if isinstance(build, functools.partial) else build


def _keyword_only(build: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the annotation and the default (... if required) of each keyword-only parameter."""
    options = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in options}
