"""Parsing and serialization of TFLite files."""

from __future__ import annotations

from typing import Any

import numpy as np

# Alignment of tensor data in bytes: the schema's force_align, which the generated packer ignores.
# Runtimes read weights in place.
ALIGNMENT = 16


def opened(content: bytes) -> Any:
    """Parses a file into a ModelT of TFLite's schema."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def packed(model: Any) -> bytes:
    """Serializes a ModelT, with identical vectors stored once."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        def __init__(self) -> None:
            super().__init__(1024)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - overrides
            key = (x.dtype.str, x.tobytes())
            if key not in self.written:
                if x.dtype == np.uint8:
                    self.Prep(ALIGNMENT, x.size)
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

    builder = Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def compact(content: bytes) -> bytes:
    """Returns an equivalent, smaller file: by about 5 % for a small network.

    A tensor's name joins the names of all operations fused into its own; the first is kept. The
    per-channel zero points, 0 in 8 bytes each, are shared by tensors with equally many channels.
    """
    model = opened(content)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = tensor.name.partition(b";")[0]
    return packed(model)
