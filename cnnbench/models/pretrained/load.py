"""Loading of published checkpoints: arrays only, and either all of them or none.

The weight names of keras.applications, torchvision, timm and others are in
`cnnbench.models.pretrained.names`, one module per family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.errors import UsageError
from cnnbench.models.pretrained import presets, sources
from cnnbench.models.pretrained.sources import Identification, names_of
from cnnbench.registry.kinds import ModelSpec
from cnnbench.system import files

# A file may exceed four times the network's size by this much: it may hold an optimizer or float64.
MARGIN_BYTES = 64 * 1024**2
# Weight name suffixes in early Keras files, and their current names.
OLD_KERAS = {"_W_1": "kernel", "_b_1": "bias"}


def start_from(model: Any, spec: ModelSpec, *, whole: bool = False) -> None:
    """Loads the preset or file named by a recipe's `model.weights`, if any.

    The file is a .h5 file from keras.applications, or a .safetensors file with the names of
    torchvision, timm or, for EfficientNets, efficientnet_pytorch. Pickles (.pth, .pt, .bin) can run
    code and are rejected; scripts/torch_to_safetensors.py converts them.

    Args:
        model: a built network.
        spec: a recipe's `model`, from which the network was built.
        whole: see `load_published`.

    Raises:
        UsageError: the file is missing, has another format, could be of several networks, or as in
            `load_published`.
        DataError: the preset cannot be downloaded.
    """
    if spec.weights is None:
        return
    is_preset = spec.weights in presets.PRESETS
    path = presets.download(spec.weights) if is_preset else files.expanded(spec.weights)
    if path.suffix not in READERS:
        raise UsageError(
            f"unsupported weights format {path.suffix or 'unknown'!r}",
            where=str(path),
            allowed=".h5 of keras.applications or .safetensors; scripts/torch_to_safetensors.py "
            "converts a .pth to .safetensors",
        )
    if not path.is_file():
        raise UsageError("weights file not found", where=str(path))
    identification = sources.identification_of(spec)
    assert identification is not None  # the file is there
    load_published(model, spec, path, identification, whole=whole)


def load_published(
    model: Any,
    spec: ModelSpec,
    path: Path,
    identification: Identification,
    *,
    whole: bool = False,
) -> None:
    """Loads a file of published weights into a model.

    Args:
        model: a built network.
        spec: what the network was built from.
        path: a .h5 or .safetensors file.
        identification: of which published network the file is.
        whole: whether the network must be the published one, with its number of classes. If False,
            options that change no weight may differ, and with other classes, the last layer keeps
            its initial weights.

    Raises:
        UsageError: the file is corrupt, contains a NaN, or its tensors do not match the network.
            The message lists the mismatches, and nothing is loaded.
    """
    name = spec.name
    most = MARGIN_BYTES + 16 * sum(math.prod(weight.shape) for weight in model.weights)
    if (size := path.stat().st_size) > most:
        raise UsageError(
            f"the file has {size:,} bytes", where=str(path), allowed=f"at most {most:,} for {name}"
        )
    try:
        tensors = READERS[path.suffix](path)
    except Exception as error:  # h5py and safetensors raise many types for corrupt files
        raise UsageError(f"cannot read the weights: {error}", where=str(path)) from None
    if whole:
        sources.check_all_options(spec, identification)
    convert = from_keras if path.suffix == ".h5" else from_torch
    try:
        arrays = convert(model, name, tensors)
    except LookupError:  # a layer without a counterpart in the other library
        raise UsageError(
            f"there are no published {path.suffix} weights for {name!r} with these options",
            where=str(path),
        ) from None
    classes = model.output_shape[-1]
    found = arrays.get("logits/kernel", np.zeros(classes)).shape[-1]
    same_head = found == classes
    if whole and not same_head:
        raise UsageError(
            f"the weights have {found} classes",
            where=str(path),
            allowed=f"the data has {classes}",
        )
    load(model, arrays, where=str(path), head=same_head)


def load(model: Any, arrays: Mapping[str, np.ndarray], *, where: str, head: bool = True) -> None:
    """Assigns arrays to a model's weights: either all of them or none.

    Args:
        model: a built network.
        arrays: arrays by weight path.
        where: source of the arrays, for error messages.
        head: whether to load the last layer.

    Raises:
        UsageError: an array is missing, unexpected, of the wrong shape, or not finite.
    """
    weights = {w.path: w for w in model.weights if head or not w.path.startswith("logits/")}
    given = {p: a for p, a in arrays.items() if head or not p.startswith("logits/")}
    problems = [f"{path}: missing" for path in weights.keys() - given.keys()]
    problems += [f"{path}: not in the network" for path in given.keys() - weights.keys()]
    for path in weights.keys() & given.keys():
        if tuple(weights[path].shape) != given[path].shape:
            problems.append(f"{path}: {given[path].shape}, not {tuple(weights[path].shape)}")
        elif not np.all(np.isfinite(given[path])):
            problems.append(f"{path}: NaN or infinite values")
    if problems:
        shown = sorted(problems)[:12]
        more = f"\n… and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
        listing = "\n".join(shown) + more
        raise UsageError(f"the weights do not match {model.name!r}:\n{listing}", where=where)
    for path, weight in weights.items():
        weight.assign(given[path])


def from_keras(model: Any, name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the weights of keras.applications to our names and shapes.

    Args:
        model: our network.
        name: the network's name in the registry.
        tensors: tensors by "layer/weight".

    Returns:
        Arrays by the paths of our weights; unused tensors keep their name, marked "(of the file)".
    """
    names = names_of(name)
    folds = getattr(names, "keras_folds", lambda *_: None)
    # Keras's EfficientNets contain a normalization layer; ours expect normalized images.
    unused = {k: v for k, v in tensors.items() if not k.startswith("normalization")}
    unused = _with_new_names(model, name, unused)
    arrays: dict[str, np.ndarray] = {}
    for weight in model.weights:
        theirs = names.keras_name(name, weight.path)
        if theirs not in unused:
            continue
        array = np.asarray(unused.pop(theirs))
        if bias := folds(name, weight.path):
            array = array - np.asarray(unused.pop(bias, 0.0))
        # A 1x1 convolution over pooled features is equivalent to a dense layer.
        if array.ndim == 4 and len(weight.shape) == 2 and array.shape[:2] == (1, 1):
            array = array.reshape(array.shape[2:])
        arrays[weight.path] = array
    return arrays | {f"{key} (of the file)": value for key, value in unused.items()}


def _with_new_names(
    model: Any, name: str, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Renames tensors of older Keras releases to the current names, by their order.

    Keras itself relies on the order alone. If kinds or sizes do not match, no tensor is renamed.
    """
    names = names_of(name)
    folds = getattr(names, "keras_folds", lambda *_: None)
    sizes = {names.keras_name(name, w.path): math.prod(w.shape) for w in model.weights}
    head = {names.keras_name(name, f"logits/{kind}") for kind in ("kernel", "bias")}
    known = sizes.keys() | {folds(name, w.path) for w in model.weights}
    missing = [key for key in sizes if key not in tensors]
    unknown = [key for key in tensors if key not in known]

    def fits(old: str, new: str) -> bool:
        same_kind = old.rpartition("/")[2] == new.rpartition("/")[2]
        return same_kind and (new in head or tensors[old].size == sizes[new])

    if len(missing) != len(unknown):
        return dict(tensors)
    renamed = dict(zip(unknown, missing, strict=True))
    if not all(fits(old, new) for old, new in renamed.items()):
        return dict(tensors)
    return {renamed.get(key, key): array for key, array in tensors.items()}


def from_torch(model: Any, name: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the weights of a PyTorch library to our names and layout.

    If libraries name the same network differently, the naming with the most matches is used.

    Args:
        model: our network.
        name: the network's name in the registry.
        tensors: tensors by the names of the state dict.

    Returns:
        Arrays, see `from_keras`.
    """
    names = names_of(name)
    layout = getattr(names, "torch_layout", lambda *_: None)
    unused = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    torch_name = max(
        getattr(names, "TORCH_NAMINGS", {"": names.torch_name}).values(),
        key=lambda naming: sum(naming(name, weight.path) in unused for weight in model.weights),
    )
    arrays: dict[str, np.ndarray] = {}
    for weight in model.weights:
        theirs = torch_name(name, weight.path)
        if theirs in unused:
            array = np.asarray(unused.pop(theirs))
            arrays[weight.path] = _from_torch(array, tuple(weight.shape), layout(name, weight.path))
    return arrays | {f"{key} (of the file)": value for key, value in unused.items()}


def read_keras_h5(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights of a .h5 file of Keras 2 or keras.applications, by "layer/weight"."""
    import h5py

    tensors, left = {}, path.stat().st_size
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        # Layer names may contain slashes; their order is that of the network.
        for layer in _texts(root.attrs.get("layer_names", list(root))):
            stored = _texts(root[layer].attrs.get("weight_names", ()))
            kinds = [full.rpartition("/")[2].partition(":")[0] for full in stored]
            for full, kind in zip(stored, kinds, strict=True):
                for old, new in OLD_KERAS.items():
                    kind = new if kind.endswith(old) else kind
                if kind == "depthwise_kernel" and "pointwise_kernel" not in kinds:
                    kind = "kernel"
                found = root[layer][full]
                # Keras stores each array once, uncompressed, in the file itself. Anything else may
                # be a bomb or point to another file.
                inside = found.file.id == file.id and not (found.external or found.is_virtual)
                left -= found.nbytes
                if not inside or left < 0:
                    raise ValueError(f"{layer}/{full} is not in the file as Keras stores arrays")
                tensors[f"{layer}/{kind}"] = found[()]
    if not tensors:
        raise ValueError("the file contains no weights of Keras layers")
    return tensors


def _texts(values: Iterable[str | bytes]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def of_keras_model(reference: Any) -> dict[str, np.ndarray]:
    """Returns the weights of a Keras model in memory, by "layer/weight"."""
    return {
        f"{layer.name}/{weight.path.rpartition('/')[2]}": weight.numpy()
        for layer in reference.layers
        for weight in layer.weights
    }


def _from_torch(
    array: np.ndarray, shape: tuple[int, ...], flattened: tuple[int, int, int] | None
) -> np.ndarray:
    """Converts a PyTorch tensor to Keras's layout: (out, in, …) becomes (…, in, out)."""
    if flattened is not None:
        channels_last = array.reshape(-1, *flattened).transpose(2, 3, 1, 0)
        return channels_last.reshape(-1, array.shape[0])
    if array.ndim == 4 and len(shape) == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim == 4:
        hwio = array.transpose(2, 3, 1, 0)
        # Depthwise kernels: (channels, 1, h, w) becomes (h, w, channels, 1).
        depthwise = array.shape[1] == 1 and shape[2:] == (array.shape[0], 1)
        return array.transpose(2, 3, 0, 1) if depthwise else hwio
    return array.T if array.ndim == 2 else array


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".h5": read_keras_h5,
    ".safetensors": _read_safetensors,
}
