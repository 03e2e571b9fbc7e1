"""The error of each layer of a TFLite int8 file."""

from __future__ import annotations

import csv
import io
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend import private
from cnnbench.backend.lazy import tf
from cnnbench.exports.formats import saved_model
from cnnbench.exports.formats.request import Request
from cnnbench.exports.formats.tflite import PASSED_ON, calibrated, converter_errors, images_of
from cnnbench.tasks.task import Task

IMAGES = 50


@dataclass(frozen=True)
class LayerError:
    """The error of one operation computed on integers instead of floats, given the same inputs.

    layer: the layer of the network that the operation computes.
    operation: TFLite's name of the operation.
    error: root mean square of the difference from float32.
    relative_error: the same, divided by the root mean square of the float32 values.
    tensor: the name of its output tensor in the file.
    """

    layer: str
    operation: str
    error: float
    relative_error: float
    tensor: str


def layer_errors(request: Request) -> list[LayerError]:
    """Returns the error of every operation, in descending order of relative error.

    Measured on the first IMAGES calibration images by TensorFlow's QuantizationDebugger, which
    computes each operation in both int8 and float32 from its inputs in the integer file.

    Args:
        request: for int8, with calibration images.

    Raises:
        UsageError: the network has an operation that TFLite lacks in int8.
    """
    assert request.calibration is not None
    subset = replace(request, calibration=request.calibration[:IMAGES])
    experimental = tf.lite.experimental
    options = experimental.QuantizationDebugOptions(
        layer_direct_compare_metrics={"noise": _noise, "power": _power}
    )
    with (
        tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch,
        warnings.catch_warnings(),
        converter_errors(request.precision),
    ):
        # TensorFlow's interpreter warns that it is deprecated, and the debugger of its memory use.
        warnings.simplefilter("ignore", UserWarning)
        saved_model.write_function(request, Path(scratch), 1, "float32", request.serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        content = calibrated(converter, request)
        debugger = experimental.QuantizationDebugger(
            quant_debug_model_content=private.quantize(content, enable_numeric_verify=True),
            debug_dataset=lambda: images_of(subset),
            debug_options=options,
        )
        debugger.run()
        table = io.StringIO()
        debugger.layer_statistics_dump(table)
    rows = csv.DictReader(io.StringIO(table.getvalue()))
    names = [layer.name for layer in request.net.model.layers]
    errors = [
        LayerError(
            layer_of(row["tensor_name"], row["op_name"], names, request.net.task),
            row["op_name"],
            float(row["noise"]) ** 0.5,
            (float(row["noise"]) / max(float(row["power"]), 1e-30)) ** 0.5,
            row["tensor_name"],
        )
        for row in rows
        if row["op_name"] not in PASSED_ON
    ]
    return sorted(errors, key=lambda error: -error.relative_error)


def layer_of(tensor: str, operation: str, names: Sequence[str], task: Task) -> str:
    """Returns the name of the layer that computes a tensor.

    Args:
        tensor: its name in the file, which joins the names of all operations fused into one, such
            as "resnet20_1/stem_act_1/Relu;resnet20_1/stem_conv_1/convolution".
        operation: the operation that computes it.
        names: the names of the network's layers.
        task: the network's task.
    """
    if tensor.startswith("StatefulPartitionedCall"):  # the names of outputs are lost
        return task.output_of_operation(operation)
    parts = [part for name in tensor.split(";") for part in name.split("/")]
    found = [name for part in parts for name in names if part in (name, f"{name}_1")]
    # Of fused layers, name the convolution rather than the activation or normalization after it.
    for name in found:
        if not name.endswith(("_act", "_norm")):
            return name
    return found[0] if found else tensor


def _noise(exact: Any, integers: Any, scale: float, zero_point: int) -> float:
    values = (integers.astype(np.float32) - zero_point) * scale
    return float(np.square(exact - values, dtype=np.float64).mean())


def _power(exact: Any, integers: Any, scale: float, zero_point: int) -> float:
    return float(np.square(exact, dtype=np.float64).mean())
