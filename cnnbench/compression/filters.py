"""Filter pruning: removes whole filters, and everything that depends on their channels.

Channels are tracked through the network's graph. Channels that a layer ties together, as an
addition does, form a unit, which is removed as a whole or not at all.
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

# By layer name: the number of filters, or the channels of zeros padded before and after.
Widths = Mapping[str, int | Sequence[int]]

# Minimum fraction to keep of a bundle's filters.
LEAST_SHARE = 1 / 8


def thin(
    model: Any, macs_share: float, *, divisor: int = 16
) -> tuple[dict[str, int | list[int]], Any]:
    """Removes the least important filters until a fraction of the network's MACs is left.

    A filter's importance is the L1 norm of its kernel (Li et al. 2017, "Pruning Filters for
    Efficient ConvNets", section 3.1) divided by the root mean square of the norms in its layer,
    which makes layers comparable. Molchanov et al. 2017, "Pruning CNNs for Resource Efficient
    Inference", divide by the root of the sum of squares, which makes the filters of wide layers
    unimportant. A unit's importance is the mean over its filters. Frozen filters and the logits are
    not removed.

    Args:
        model: a functional convolutional network; it is not changed.
        macs_share: fraction of the network's multiply-accumulates to keep, in [0, 1].
        divisor: a power of 2. The number of filters left in a layer is a multiple of it; layers
            with fewer than twice as many filters use half of it, a quarter, and so on. Devices
            compute several channels at once, so that missing ones save nothing; TFLite on a CPU
            with AVX is slower with multiples of 8 than of 16.

    Returns:
        The widths that differ from the network's, for `rebuild`, and the smaller network with the
        remaining weights. It computes what the network would with the removed channels at zero.

    Raises:
        UsageError: the network has an unsupported layer, or cannot be reduced that far.
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
    # The last steps may have removed more than needed. Undo steps in reverse order, which leaves
    # each bundle with a width that it had on the way.
    narrowed = set()
    for number, step in reversed(taken):
        if number not in narrowed:
            keep[step] = True
            if graph.macs(keep) > macs_share * full:
                keep[step] = False
                narrowed.add(number)
    return _cut(model, graph, keep)


def rebuild(model: Any, widths: Widths) -> Any:
    """Returns a network with the same layers and names but other widths.

    Its weights are newly initialized; weights that are frozen in `model` are frozen in it.

    Args:
        model: functional, as it was given to `thin`.
        widths: from `thin`.

    Raises:
        UsageError: the widths do not fit the network.
    """
    for name, width in widths.items():
        full = next((_width(layer) for layer in model.layers if layer.name == name), None)
        if full is None or not _fits(width, full):
            raise UsageError(
                f"{name}: a width of {width} does not fit {model.name}",
                allowed=None if full is None else f"at most {full}",
            )

    def clone(layer: Any) -> Any:
        changes = _narrowed(layer, widths[layer.name]) if layer.name in widths else {}
        return type(layer).from_config(layer.get_config() | changes)

    try:
        thinner = keras.models.clone_model(model, clone_function=clone)
    except (TypeError, ValueError) as error:  # e.g. tensors of different widths are added
        reason = str(error).splitlines()[0]
        raise UsageError(f"the widths are inconsistent: {reason}") from None
    for old, new in zip(model.weights, thinner.weights, strict=True):
        new.trainable = old.trainable
    return thinner


class _Flow(NamedTuple):
    """The input and output channels of a layer, or the units that they belong to."""

    inputs: np.ndarray
    outputs: np.ndarray


class _Bundle(NamedTuple):
    """Units that pass through the same layers.

    Attributes:
        units: their indices.
        channels: number of channels of a layer that each unit consists of.
        width: filters of the widest layer that produces them.
    """

    units: np.ndarray
    channels: int
    width: int


class _Graph:
    """The units of a network, and their multiply-accumulates.

    Attributes:
        units: number of units; their indices start at 0.
        flows: units going into and out of each layer, by its name.
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
        """Returns the multiply-accumulates of the network reduced to the units in `keep`."""
        total = 0
        for macs, (inputs, outputs), sees_all in self._costs:
            if sees_all:
                macs = macs * int(keep[inputs].sum()) // len(inputs)
            total += macs * int(keep[outputs].sum()) // len(outputs)
        return total

    def bundles(self) -> list[_Bundle]:
        """Returns the removable units, grouped by the layers that they pass through."""
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
        """Returns the output channels of a layer, and records which channels it ties."""
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
            f"filters cannot be removed around {layer.name}: how a {type(layer).__name__} maps "
            "channels is not known"
        )

    def _tie(self, *channels: np.ndarray) -> None:
        self._ties += [(channels[0], other) for other in channels[1:]]

    def _united(self) -> np.ndarray:
        """Returns the unit of every channel."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        empty = np.zeros(0, int)
        pairs = [np.concatenate([empty, *side]) for side in zip(*self._ties, strict=True)]
        one, other = pairs or (empty, empty)
        ties = coo_array((np.ones(len(one)), (one, other)), (self._count, self._count))
        return connected_components(ties, directed=False)[1]


def _channels(after: Mapping[int, np.ndarray], tensor: Any, model: Any) -> np.ndarray:
    if id(tensor) not in after:
        raise UsageError(f"filters of {model.name} cannot be removed: it uses a layer twice")
    return after[id(tensor)]


def _listed(tensors: Any) -> list[Any]:
    return tensors if isinstance(tensors, list) else [tensors]


def _channelwise() -> tuple[type, ...]:
    """Returns the layer types that keep channels separate; they may map 0 to another value."""
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
    """Returns the number of filters of a layer that produces new channels, else None."""
    if isinstance(layer, keras.layers.Conv2D):
        return layer.filters
    return layer.units if isinstance(layer, keras.layers.Dense) else None


def _sees_all(layer: Any) -> bool:
    """Returns whether each filter reads all input channels, not just those of a group."""
    return _filters(layer) is not None and getattr(layer, "groups", 1) == 1


def _pads_channels(layer: Any) -> bool:
    """Returns whether a layer pads the last two axes, columns and channels."""
    return isinstance(layer, keras.layers.ZeroPadding2D) and layer.data_format == "channels_first"


def _importance(model: Any, graph: _Graph) -> np.ndarray:
    """Returns the importance of each unit, (units,); units without filters have 0."""
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
    """Yields the groups of units to remove from a bundle step by step, least important first."""
    units = bundle.units[np.argsort(importance[bundle.units], kind="stable")]
    while divisor > max(1, bundle.width // 2):
        divisor //= 2
    total, each = len(units), max(1, divisor // bundle.channels)
    least = max(each, math.ceil(LEAST_SHARE * total))
    sizes = [total, *(size for size in range(total - 1, least - 1, -1) if size % each == 0)]
    for before, size in pairwise(sizes):
        yield units[total - before : total - size]


def _cut(model: Any, graph: _Graph, keep: np.ndarray) -> tuple[dict[str, int | list[int]], Any]:
    """Returns the changed widths, and the network reduced to the units in `keep`, with weights."""
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
    """Returns the slice of a weight for the input and output channels to keep."""
    values = keras.ops.convert_to_numpy(weight)
    is_kernel = weight is getattr(layer, "kernel", None)
    if is_kernel and isinstance(layer, keras.layers.DepthwiseConv2D):
        return values[..., inputs, :]
    if is_kernel and _sees_all(layer):
        values = values[..., inputs, :]
    return values[..., outputs]


def _width(layer: Any) -> int | list[int] | None:
    """Returns the width of a layer that produces new channels, else None."""
    return list(layer.padding[1]) if _pads_channels(layer) else _filters(layer)


def _left(layer: Any, keep: np.ndarray) -> int | list[int]:
    """Returns the width of a layer reduced to the outputs in `keep`."""
    if not _pads_channels(layer):
        return int(keep.sum())
    before, behind = layer.padding[1]
    return [int(keep[:before].sum()), int(keep[len(keep) - behind :].sum())]


def _fits(width: int | Sequence[int], full: int | list[int]) -> bool:
    """Returns whether a width is at most a layer's full width."""
    if isinstance(width, int) or isinstance(full, int):
        return isinstance(width, int) and isinstance(full, int) and 0 <= width <= full
    return len(width) == len(full) and all(0 <= n <= m for n, m in zip(width, full, strict=True))


def _narrowed(layer: Any, width: Any) -> dict[str, Any]:
    """Returns the changes to a layer's configuration that give it another width."""
    if _pads_channels(layer):
        return {"padding": ((0, 0), tuple(width))}
    if isinstance(layer, keras.layers.Dense):
        return {"units": width}
    groups = layer.groups * width // layer.filters if layer.groups > 1 else 1
    return {"filters": width, "groups": groups}
