"""Models, archives, checkpoints and run directories that mean harm."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.runs import checkpoint
from cnnbench.runs.checkpoint import Checkpoint
from cnnbench.system import files

from .recipes import Make, recipe, train
from .syscalls import make_run

SECRET = "secret-9f2c"
PWN = 'import os; os.system("touch ../outside/pwned")'


def _h5(build: Callable[[Any, Any], None], work: Path) -> Sequence[object]:
    """A file that Keras might have written, with one layer that fits."""
    import h5py

    path = work / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"predictions"]
        group = file.create_group("predictions")
        group.attrs["weight_names"] = [b"predictions/bias:0"]
        inner = group.create_group("predictions")
        build(file, inner)
    return ("weights", path)


def _external_link(file: Any, group: Any) -> None:
    import h5py

    other = Path(file.filename).parents[1] / "outside/other.h5"
    with h5py.File(other, "w") as elsewhere:
        elsewhere["bias"] = np.zeros(16, np.float32)
    group["bias:0"] = h5py.ExternalLink(str(other), "/bias")


def _external_storage(file: Any, group: Any) -> None:
    secret = Path(file.filename).parents[1] / "outside/secret.txt"
    group.create_dataset("bias:0", (16,), np.float32, external=[(str(secret), 0, 64)])


def _virtual(file: Any, group: Any) -> None:
    import h5py

    other = Path(file.filename).parents[1] / "outside/other.h5"
    with h5py.File(other, "w") as elsewhere:
        elsewhere["bias"] = np.zeros(16, np.float32)
    layout = h5py.VirtualLayout((16,), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "bias", (16,))
    group.create_virtual_dataset("bias:0", layout)


def _compressed(file: Any, group: Any) -> None:
    size = (300, 1024, 1024)
    made = group.create_dataset("bias:0", size, np.float32, chunks=(1, 1024, 1024), compression=9)
    chunk = zlib.compress(bytes(4 * 1024**2), 9)
    for i in range(size[0]):
        made.id.write_direct_chunk((i, 0, 0), chunk)


def _unallocated(file: Any, group: Any) -> None:
    group.create_dataset("bias:0", (400_000_000,), np.float32, chunks=(1000,))


def _loop(file: Any, group: Any) -> None:
    import h5py

    group["bias:0"] = h5py.SoftLink("/predictions/predictions/bias:0")


def _lambda(file: Any, group: Any) -> None:
    code = {"class_name": "Lambda", "config": {"function": ["X", PWN], "module": "builtins"}}
    file.attrs["model_config"] = json.dumps({"config": {"layers": [code]}})
    group["gamma:0"] = np.zeros(16, np.float32)


class _Evil:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch ../outside/pwned",))


def _pickled(name: str, work: Path) -> Sequence[object]:
    (work / name).write_bytes(pickle.dumps(_Evil()))
    return ("weights", work / name)


def _safetensors(header: object, body: bytes, work: Path) -> Sequence[object]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = work / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return ("weights", path)


def _tensor(start: int, end: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


def _long_header(work: Path) -> Sequence[object]:
    path = work / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    return ("weights", path)


def _sparse(work: Path) -> Sequence[object]:
    size = 4 * 400_000_000
    found = _safetensors({"classifier.6.bias": _tensor(0, size, size // 4)}, b"", work)
    with Path(str(found[1])).open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + size)
    return found


def _keras_bomb(work: Path) -> Sequence[object]:
    with zipfile.ZipFile(work / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10**8))
    return train(recipe(model="{name: resnet18, weights: bomb.keras}"), work)


def _tar_leaves(work: Path) -> Sequence[object]:
    with tarfile.open(work / "weights.safetensors", "w") as archive:
        archive.add(__file__, "../outside/pwned")
    return ("weights", work / "weights.safetensors")


def _saved(work: Path) -> Path:
    folder = work / "run/checkpoints/7"
    checkpoint.save(folder, Checkpoint({"model/0/w": np.zeros(16, np.float32)}, {"step": 7}))
    return folder


def _manifest(change: Callable[[dict[str, Any]], None], work: Path) -> Sequence[object]:
    """A checkpoint whose manifest was changed by one who knows how to sign it."""
    path = _saved(work) / checkpoint.MANIFEST
    body = json.loads(path.read_text())
    del body["sha256"]
    change(body)
    path.write_text(json.dumps(files.signed(body)))
    return ("checkpoint", work / "run")


def _reads_a_device(body: dict[str, Any]) -> None:
    body["files"]["../../../../../../../../../../dev/zero"] = "0" * 64


def _reads_a_secret(body: dict[str, Any]) -> None:
    name = "../../../../outside/secret.txt"
    body["files"][name] = hashlib.sha256((SECRET * 20).encode()).hexdigest()


def _manifest_text(text: str, work: Path) -> Sequence[object]:
    (_saved(work) / checkpoint.MANIFEST).write_text(text)
    return ("checkpoint", work / "run")


def _state_is_a_list(body: dict[str, Any]) -> None:
    body["state"] = ["step", 7]


def _linked_arrays(work: Path) -> Sequence[object]:
    arrays = _saved(work) / checkpoint.ARRAYS
    arrays.unlink()
    arrays.symlink_to("/dev/zero")
    return ("checkpoint", work / "run")


def _lock_leaves(work: Path) -> Sequence[object]:
    make_run(work / "run")
    (work / "run/lock").symlink_to("../../outside/secret.txt")
    return ("run", work / "run")


def _environment(text: str, work: Path) -> Sequence[object]:
    make_run(work / "run")
    (work / "run/environment.json").write_text(text)
    return ("run", work / "run")


DEEP = "[" * 100_000 + "]" * 100_000
MODELS: dict[str, Make] = {
    "h5 with a Lambda": functools.partial(_h5, _lambda),
    "h5 with an external link": functools.partial(_h5, _external_link),
    "h5 stored elsewhere": functools.partial(_h5, _external_storage),
    "h5 that is virtual": functools.partial(_h5, _virtual),
    "h5 that inflates": functools.partial(_h5, _compressed),
    "h5 of nothing": functools.partial(_h5, _unallocated),
    "h5 in a circle": functools.partial(_h5, _loop),
    "pickle as h5": functools.partial(_pickled, "weights.h5"),
    "pickle as safetensors": functools.partial(_pickled, "weights.safetensors"),
    "pickle": functools.partial(_pickled, "weights.pth"),
    "safetensors, long header": _long_header,
    "safetensors, deep header": functools.partial(_safetensors, DEEP.encode(), b""),
    "safetensors, overlapping": functools.partial(
        _safetensors,
        {"a": _tensor(0, 64, 16), "classifier.6.bias": _tensor(32, 96, 16)},
        bytes(96),
    ),
    "safetensors, beyond the end": functools.partial(
        _safetensors, {"classifier.6.bias": _tensor(0, 2**40, 2**38)}, bytes(64)
    ),
    "safetensors, sparse": _sparse,
    "keras that inflates": _keras_bomb,
    "tar that leaves": _tar_leaves,
    "checkpoint reads a device": functools.partial(_manifest, _reads_a_device),
    "checkpoint reads outside": functools.partial(_manifest, _reads_a_secret),
    "checkpoint, deep": functools.partial(_manifest_text, DEEP),
    "checkpoint, no mapping": functools.partial(_manifest_text, "[1, 2]"),
    "checkpoint, state no mapping": functools.partial(_manifest, _state_is_a_list),
    "checkpoint, endless arrays": _linked_arrays,
    "lock leaves": _lock_leaves,
    "environment, deep": functools.partial(_environment, DEEP),
}
