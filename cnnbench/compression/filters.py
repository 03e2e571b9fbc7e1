"""Filter pruning: whole filters are removed, and with them all that hangs on their channels.

Channels are followed through the graph of a network. Those that a layer ties to one another, as an
addition does, make a unit, which is removed as one or not at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cnnbench.backend.lazy import keras
from cnnbench.errors import UsageError
from cnnbench.models.complexity import count_macs, layer_macs

# By the name of a layer: its filters, or the zeros that it pads channels with, before and after.
Widths = Mapping[str, int | Sequence[int]]

# What stays at least of the filters that are removed alike.
LEAST_SHARE = 1 / 8


def thin(
    model: Any, macs_share: float, *, divisor: int = 16
) -> tuple[dict[str, int | list[int]], Any]:
    """Removes the least important filters until a network has a share of its MACs.

    A filter's importance is the L1 norm of its kernel (Li et al. 2017, "Pruning Filters for
    Efficient ConvNets", section 3.1) over the root mean square of its layer's, so that layers
    compare. Molchanov et al. 2017, "Pruning CNNs for Resource Efficient Inference", divide by the
    root of the sum of squares, which makes the filters of wide layers unimportant. A unit's is the
    mean of its filters'. Filters that are not trained and the logits are left whole.

    Args:
        model: a functional network of convolutions; it is not changed.
        macs_share: 0-1, of the multiply-accumulates of the network.
        divisor: a power of 2, of which the filters that remain in a layer are a multiple, or of
            its half, quarter and so on in a layer that has less than twice so many. A device
            computes several channels at once, and those that are missing cost it the same; TFLite
            on a CPU with AVX is slower by 8 than by 16.

    Returns:
        The widths that differ from the network's, for `rebuild`, and the thinner network with the
        weights that are left. It computes what the network would with the removed channels zero.

    Raises:
        UsageError: the network has a layer that is not understood, or cannot be so thin.
    """
    graph = _Graph(model)
    importance = _importance(model, graph)
    bundles = graph.bundles()
    steps = [
        (number, step)
        for number, bundle in enumerate(bundles)
        for step in _steps(bundle, importance, divisor)
    ]
    full, keep, taken = count_macs(model), np.ones(graph.units, bool), []
    for number, step in sorted(steps, key=lambda each: importance[each[1]].mean()):
        if graph.macs(keep) <= macs_share * full:
            break
        keep[step] = False
        taken.append((number, step))
    if (macs := graph.macs(keep)) > macs_share * full:
        raise UsageError(
            f"{model.name} cannot be thinned to {macs_share:.3g} of its MACs",
            allowed=f"at least {math.ceil(1000 * macs / full) / 1000} with a divisor of {divisor}",
        )
    # The last step may have gone far beyond what was wanted. A bundle gets back its last ones
    # first, and so has one of the widths that it had on the way.
    narrowed = set()
    for number, step in reversed(taken):
        if number not in narrowed:
            keep[step] = True
            if graph.macs(keep) > macs_share * full:
                keep[step] = False
                narrowed.add(number)
    return _cut(model, graph, keep)


def rebuild(model: Any, widths: Widths) -> Any:
    """Returns a network like another, of the same layers and names, with other widths.

    Its weights are new ones; those that are not trained in the other are not in it.

    Args:
        model: functional, as `thin` had it.
        widths: from `thin`.

    Raises:
        UsageError: the widths are not of such a network.
    """
    for name, width in widths.items():
        full = next((_width(layer) for layer in model.layers if layer.name == name), None)
        if full is None or not _fits(width, full):
            raise UsageError(
                f"{name}: a width of {width} is not one of {model.name}",
                allowed=None if full is None else f"at most {full}",
            )

    def clone(layer: Any) -> Any:
        changes = _narrowed(layer, widths[layer.name]) if layer.name in widths else {}
        return type(layer).from_config(layer.get_config() | changes)

    try:
        thinner = keras.models.clone_model(model, clone_function=clone)
    except (TypeError, ValueError) as error:  # as where tensors of different widths are added
        reason = str(error).splitlines()[0]
        raise UsageError(f"the widths do not go with one another: {reason}") from None
    for old, new in zip(model.weights, thinner.weights, strict=True):
        new.trainable = old.trainable
    return thinner


class _Flow(NamedTuple):
    """The channels, or the units that they belong to, that go into a layer and come out of it."""

    inputs: np.ndarray
    outputs: np.ndarray


class _Bundle(NamedTuple):
    """Units that go through the same layers.

    Attributes:
        units: their numbers.
        channels: of a layer, that each of them is.
        width: filters of the widest layer that makes them.
    """

    units: np.ndarray
    channels: int
    width: int


class _Graph:
    """Which channels of a network go together, and what they cost.

    Attributes:
        units: how many there are; they are numbered from 0.
        flows: units by the name of a layer.
    """

    def __init__(self, model: Any):
        self._count = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._makers: dict[str, int] = {}
        whole, flows = [], {}
        after: dict[int, np.ndarray] = {}  # channels by the identity of a symbolic tensor
        for layer in model.layers:
            if isinstance(layer, keras.layers.InputLayer):
                after[id(layer.output)] = self._new(layer.output.shape[-1])
                whole.append(after[id(layer.output)])
                continue
            inputs = [_channels(after, x, model) for x in _listed(layer.input)]
            outputs = after[id(layer.output)] = self._follow(layer, inputs)
            flows[layer.name] = _Flow(np.concatenate(inputs), outputs)
            if (filters := _filters(layer)) is not None:
                self._makers[layer.name] = filters
                if not layer.kernel.trainable:
                    whole.append(outputs)
        whole += [_channels(after, x, model) for x in model.outputs]
        unit_of = self._united()
        self.units = int(unit_of.max()) + 1
        self.flows = {name: _Flow(*(unit_of[each] for each in flows[name])) for name in flows}
        self._whole = set(unit_of[np.concatenate(whole)].tolist())
        self._costs = [
            (macs, self.flows[layer.name], _sees_all(layer))
            for layer in model.layers
            if (macs := layer_macs(layer))
        ]

    def macs(self, keep: np.ndarray) -> int:
        """Returns the multiply-accumulates of the network with the units that are kept."""
        total = 0
        for macs, (inputs, outputs), sees_all in self._costs:
            if sees_all:
                macs = macs * int(keep[inputs].sum()) // len(inputs)
            total += macs * int(keep[outputs].sum()) // len(outputs)
        return total

    def bundles(self) -> list[_Bundle]:
        """Returns the units that may be removed, those together that differ in nothing."""
        paths: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, flow in self.flows.items():
            for unit, count in zip(*np.unique(flow.outputs, return_counts=True), strict=True):
                paths[int(unit)].append((name, int(count)))
        alike: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for unit, path in paths.items():
            if unit not in self._whole:
                alike[tuple(path)].append(unit)
        return [
            _Bundle(
                np.array(units),
                path[0][1],
                max((self._makers[name] for name, _ in path if name in self._makers), default=1),
            )
            for path, units in alike.items()
        ]

    def _new(self, count: int) -> np.ndarray:
        self._count += count
        return np.arange(self._count - count, self._count)

    def _follow(self, layer: Any, inputs: list[np.ndarray]) -> np.ndarray:
        """Returns the channels that come out of a layer, and notes what it ties."""
        layers, first = keras.layers, inputs[0]
        if (filters := _filters(layer)) is not None:
            outputs = self._new(filters)
            if not _sees_all(layer):
                groups = [each.reshape(layer.groups, -1) for each in (first, outputs)]
                self._tie(*np.concatenate(groups, 1).T)
            return outputs
        if isinstance(layer, layers.DepthwiseConv2D):
            return np.repeat(first, layer.depth_multiplier)
        if _pads_channels(layer):
            before, behind = layer.padding[1]
            return np.concatenate([self._new(before), first, self._new(behind)])
        if isinstance(layer, layers.Concatenate):
            return np.concatenate(inputs)
        if isinstance(layer, layers.Flatten):
            return np.tile(first, math.prod(layer.input.shape[1:-1]))
        if isinstance(layer, layers.Add | layers.Multiply) and len({*map(len, inputs)}) == 1:
            self._tie(*inputs)
            return first
        if isinstance(layer, _channelwise()):
            return first
        raise UsageError(
            f"filters cannot be removed around {layer.name}: what a {type(layer).__name__} does to "
            "single channels is not known"
        )

    def _tie(self, *channels: np.ndarray) -> None:
        self._ties += [(channels[0], other) for other in channels[1:]]

    def _united(self) -> np.ndarray:
        """Returns the unit of every channel."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        none = np.zeros(0, int)
        pairs = [np.concatenate([none, *side]) for side in zip(*self._ties, strict=True)]
        one, other = pairs or (none, none)
        ties = coo_array((np.ones(len(one)), (one, other)), (self._count, self._count))
        return connected_components(ties, directed=False)[1]


def _channels(after: Mapping[int, np.ndarray], tensor: Any, model: Any) -> np.ndarray:
    if id(tensor) not in after:
        raise UsageError(f"filters of {model.name} cannot be removed: it uses a layer twice")
    return after[id(tensor)]


def _listed(tensors: Any) -> list[Any]:
    return tensors if isinstance(tensors, list) else [tensors]


def _channelwise() -> tuple[type, ...]:
    """Returns the layers that keep every channel, and for itself; 0 may become something else."""
    layers = keras.layers
    return (
        layers.Activation,
        layers.AdaptiveAveragePooling2D,
        layers.AveragePooling2D,
        layers.BatchNormalization,
        layers.Cropping2D,
        layers.Dropout,
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        layers.MaxPooling2D,
        layers.PReLU,
        layers.Rescaling,
        layers.UpSampling2D,
        layers.ZeroPadding2D,
    )


def _filters(layer: Any) -> int | None:
    """Returns how many filters a layer has that make new channels."""
    if isinstance(layer, keras.layers.Conv2D):
        return layer.filters
    return layer.units if isinstance(layer, keras.layers.Dense) else None


def _sees_all(layer: Any) -> bool:
    """Tells whether each filter sees all channels of its input, and not those of a group alone."""
    return _filters(layer) is not None and getattr(layer, "groups", 1) == 1


def _pads_channels(layer: Any) -> bool:
    """Tells whether a layer pads the last two axes, the columns and the channels."""
    return isinstance(layer, keras.layers.ZeroPadding2D) and layer.data_format == "channels_first"


def _importance(model: Any, graph: _Graph) -> np.ndarray:
    """Returns the importance of each unit; that of zeros alone is 0."""
    total, count = np.zeros(graph.units), np.zeros(graph.units)
    for layer in model.layers:
        if _filters(layer) is not None:
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            norms = np.abs(kernel.reshape(-1, kernel.shape[-1])).sum(0)
            np.add.at(total, graph.flows[layer.name].outputs, norms / (_rms(norms) or 1.0))
            np.add.at(count, graph.flows[layer.name].outputs, 1)
    return total / np.maximum(count, 1)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _steps(bundle: _Bundle, importance: np.ndarray, divisor: int) -> Iterator[np.ndarray]:
    """Yields the units of a bundle that may be removed at once, the least important first."""
    units = bundle.units[np.argsort(importance[bundle.units], kind="stable")]
    while divisor > max(1, bundle.width // 2):
        divisor //= 2
    total, each = len(units), max(1, divisor // bundle.channels)
    least = max(each, math.ceil(LEAST_SHARE * total))
    sizes = [total, *(size for size in range(total - 1, least - 1, -1) if size % each == 0)]
    for before, size in pairwise(sizes):
        yield units[total - before : total - size]


def _cut(model: Any, graph: _Graph, keep: np.ndarray) -> tuple[dict[str, int | list[int]], Any]:
    """Returns the widths, and the network of the units that are kept, with their weights."""
    widths: dict[str, int | list[int]] = {}
    for layer in model.layers:
        full = _width(layer)
        if full is not None:
            left = _left(layer, keep[graph.flows[layer.name].outputs])
            widths |= {layer.name: left} if left != full else {}
    thinner = rebuild(model, widths)
    for layer in model.layers:
        for weight, target in zip(
            layer.weights, thinner.get_layer(layer.name).weights, strict=True
        ):
            inputs, outputs = (keep[units] for units in graph.flows[layer.name])
            target.assign(_part(layer, weight, inputs, outputs))
    return widths, thinner


def _part(layer: Any, weight: Any, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Returns what is left of a weight for the channels that are kept."""
    values = keras.ops.convert_to_numpy(weight)
    is_kernel = weight is getattr(layer, "kernel", None)
    if is_kernel and isinstance(layer, keras.layers.DepthwiseConv2D):
        return values[..., inputs, :]
    if is_kernel and _sees_all(layer):
        values = values[..., inputs, :]
    return values[..., outputs]


def _width(layer: Any) -> int | list[int] | None:
    """Returns the width of a layer that makes new channels."""
    return list(layer.padding[1]) if _pads_channels(layer) else _filters(layer)


def _left(layer: Any, keep: np.ndarray) -> int | list[int]:
    """Returns the width of a layer with the outputs that are kept."""
    if not _pads_channels(layer):
        return int(keep.sum())
    before, behind = layer.padding[1]
    return [int(keep[:before].sum()), int(keep[len(keep) - behind :].sum())]


def _fits(width: int | Sequence[int], full: int | list[int]) -> bool:
    """Tells whether a width is a layer's own or less."""
    if isinstance(width, int) or isinstance(full, int):
        return isinstance(width, int) and isinstance(full, int) and 0 <= width <= full
    return len(width) == len(full) and all(0 <= n <= m for n, m in zip(width, full, strict=True))


def _narrowed(layer: Any, width: Any) -> dict[str, Any]:
    """Returns what changes in the configuration of a layer that gets another width."""
    if _pads_channels(layer):
        return {"padding": ((0, 0), tuple(width))}
    if isinstance(layer, keras.layers.Dense):
        return {"units": width}
    groups = layer.groups * width // layer.filters if layer.groups > 1 else 1
    return {"filters": width, "groups": groups}
