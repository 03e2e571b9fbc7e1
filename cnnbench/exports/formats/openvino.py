"""OpenVINO's intermediate representation."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np

from cnnbench.errors import UsageError
from cnnbench.exports.formats import saved_model
from cnnbench.exports.formats.format import Format, Loaded, usable
from cnnbench.exports.formats.request import Request

FORMAT = Format("OpenVINO", "model.xml", "OpenVINO IR, float32.", packages=("openvino",))


def write(request: Request, folder: Path) -> None:
    """Writes model.xml and model.bin, in float32.

    Raises:
        UsageError: OpenVINO lacks an operation of the network.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        start = Path(scratch)
        saved_model.write_function(request, start, None, request.input_dtype, request.serve)
        try:
            # Not `convert_model`, which sends usage telemetry to OpenVINO's developers.
            model = openvino.Core().read_model(start)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            what = next((line for line in lines if "No conversion rule" in line), lines[-1])
            raise UsageError(
                f"cannot be converted to OpenVINO: {what[:300]}", allowed="choose another format"
            ) from error
        file = folder / "model.xml"
        openvino.save_model(model, file, compress_to_fp16=False)
    # OpenVINO numbers the operations it adds by a process-wide counter; use the layer's id instead.
    renumbered = re.sub(
        r'(<layer id="(\d+)" name="[A-Za-z]+_)\d+"', r'\1\2"', file.read_text(encoding="utf-8")
    )
    file.write_text(renumbered, encoding="utf-8")


def load(path: Path) -> Loaded:
    """Compiles a model for the CPU, in float32 even if the processor has less precise types."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (images,) = model.inputs
    names = [each.any_name for each in model.outputs]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model(batch)
        return usable({name: outputs[i] for i, name in enumerate(names)}, len(batch))

    size = images.partial_shape[0]
    fixed_batch = size.get_length() if size.is_static else None
    takes_pixels = images.element_type == openvino.Type.u8
    return Loaded(run, takes_pixels, fixed_batch, lambda size: run)
