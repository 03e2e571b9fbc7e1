"""TFLite files as objects, and back as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

# Of the data of tensors: the schema's force_align, which the packer of the schema's package leaves
# out. A run-time reads weights where they lie.
ALIGNMENT = 16


def opened(content: bytes) -> Any:
    """Returns what a file holds, a ModelT of TFLite's schema."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def packed(model: Any) -> bytes:
    """Returns the file of a ModelT, in which vectors of the same values are there once."""
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
    """Returns a file that is the same in fewer bytes, a twentieth less for a small network.

    Tensors have the names of all the operations that were merged into theirs, of which the first
    will do. Every channel has a zero point of 0 in 8 bytes, which tensors of as many can share.
    """
    model = opened(content)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = tensor.name.partition(b";")[0]
    return packed(model)
