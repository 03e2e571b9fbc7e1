"""Functional models as graphs: which layers are connected, and copies with changed layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cnnbench.backend import private
from cnnbench.backend.lazy import keras


def inputs_of(layer: Any) -> list[str]:
    """Returns the names of the layers whose outputs a layer takes, in order."""
    if isinstance(layer, keras.layers.InputLayer):
        return []
    return _makers(layer.input)


def users(model: Any) -> dict[str, list[str | None]]:
    """Returns the names of the layers that take each layer's output, by its name.

    A layer whose output the model returns also has None among its users.
    """
    found: dict[str, list[str | None]] = {layer.name: [] for layer in model.layers}
    for layer in model.layers:
        for name in inputs_of(layer):
            found[name].append(layer.name)
    for name in _makers(model.outputs):
        found[name].append(None)
    return found


def rebuilt(model: Any, make: Callable[[Any, Any], Any]) -> Any:
    """Rebuilds a model layer by layer.

    Args:
        model: functional, each layer called once.
        make: takes a layer and its new input, a tensor or list of tensors, and returns the new
            output. For an input layer, it is called with the new input tensor.
    """
    images: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            images[layer.name] = taken = keras.Input(
                batch_shape=layer.batch_shape, dtype=layer.dtype, name=layer.name
            )
        else:
            taken = [outputs[name] for name in inputs_of(layer)]
            taken = taken if isinstance(layer.input, list | tuple) else taken[0]
        outputs[layer.name] = make(layer, taken)
    ends = [outputs[name] for name in _makers(model.outputs)]
    return keras.Model(_one_or_all(list(images.values())), _one_or_all(ends), name=model.name)


def copied(layer: Any, taken: Any, kind: Any = None, **changes: Any) -> Any:
    """Returns the output of a copy of a layer, with the same weights and the same ones trainable.

    Args:
        layer: to copy.
        taken: input of the copy, a tensor or list of tensors.
        kind: class of the copy; None: the layer's.
        **changes: changes of its configuration, which must not alter the shapes of its weights.
    """
    if isinstance(layer, keras.layers.InputLayer):
        return taken
    copy = (kind or type(layer)).from_config(layer.get_config() | changes)
    output = copy(taken)
    copy.set_weights(layer.get_weights())
    for own, other in zip(copy.weights, layer.weights, strict=True):
        own.trainable = other.trainable
    return output


def _one_or_all(tensors: list[Any]) -> Any:
    return tensors if len(tensors) > 1 else tensors[0]


def _makers(tensors: Any) -> list[str]:
    return [private.maker_of(tensor).name for tensor in keras.tree.flatten(tensors)]
