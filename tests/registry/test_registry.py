"""Registries: options from signatures, and what a builder is called with."""

from __future__ import annotations

import functools

import pytest
from pydantic import ValidationError

from cnnbench.registry.limits import Share
from cnnbench.registry.registry import Registry, Spec


class SharedSpec(Spec):
    """What all parts of the kind share."""

    shared: int = 0


def scaled(context: NotImported, factor: int, *, share: Share, names: list[str] | None = None):  # noqa: F821 - as of a module that is imported when it is used
    """Scales."""
    return context, factor, share, names


@pytest.fixture
def registry():
    registry = Registry("part", __name__, SharedSpec)
    registry.add("twice", functools.partial(scaled, factor=2))
    return registry


def test_a_builder_gets_its_own_options_alone(registry):
    spec = registry.spec("twice", share=0.5, shared=3)
    assert spec.options() == {"share": 0.5, "names": None, "factor": 2}
    assert spec.shared == 3
    assert registry.build(spec, "given") == ("given", 2, 0.5, None)


@pytest.mark.parametrize(
    ("options", "where"),
    [({}, "share"), ({"share": 0.0}, "share"), ({"share": 1.0, "other": 1}, "other")],
)
def test_options_are_checked_as_the_signature_says(registry, options, where):
    with pytest.raises(ValidationError, match=where):
        registry.spec("twice", **options)


def test_what_all_share_is_no_option():
    assert SharedSpec(name="x").options() == Spec(name="x").options() == {}
