"""OpenVINO's intermediate representation."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np

from cnnbench.errors import UsageError
from cnnbench.exports.formats import saved_model
from cnnbench.exports.formats.format import Format, Loaded
from cnnbench.exports.formats.request import Request

FORMAT = Format("OpenVINO", "model.xml", "OpenVINO: float32.", packages=("openvino",))


def write(request: Request, folder: Path) -> None:
    """Writes model.xml and model.bin, float32.

    Raises:
        UsageError: OpenVINO lacks an operation of the network.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        start = Path(scratch)
        saved_model.write_function(request, start, None, request.input_dtype, request.serve)
        try:
            # Not by `convert_model`, which tells a server of OpenVINO's makers that it was used.
            model = openvino.Core().read_model(start)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            what = next((line for line in lines if "No conversion rule" in line), lines[-1])
            raise UsageError(
                f"cannot be converted to OpenVINO: {what[:300]}", allowed="another format"
            ) from error
        file = folder / "model.xml"
        openvino.save_model(model, file, compress_to_fp16=False)
    # Operations that OpenVINO adds are numbered by a counter of the process.
    by_place = re.sub(
        r'(<layer id="(\d+)" name="[A-Za-z]+_)\d+"', r'\1\2"', file.read_text(encoding="utf-8")
    )
    file.write_text(by_place, encoding="utf-8")


def load(path: Path) -> Loaded:
    """Compiles a model for the CPU, in float32 on processors too that have less precise types."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (images,) = model.inputs
    names = [each.any_name for each in model.outputs]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model(batch)
        return {name: np.asarray(outputs[i], np.float32) for i, name in enumerate(names)}

    size = images.partial_shape[0]
    only = size.get_length() if size.is_static else None
    takes_pixels = images.element_type == openvino.Type.u8
    return Loaded(run, takes_pixels, only, lambda size: run)
