"""Which layers of a network lose most by int8, in TFLite."""

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
    """What one operation loses by being computed on integers, given the same inputs.

    layer: of the network, that it computes.
    operation: of TFLite.
    error: root mean square of the difference to float32.
    relative_error: the same, over the root mean square of the float32 values.
    tensor: of its output, in the file.
    """

    layer: str
    operation: str
    error: float
    relative_error: float
    tensor: str


def layer_errors(request: Request) -> list[LayerError]:
    """Returns the error of every operation, the largest relative one first.

    It is measured on IMAGES of the calibration images by TensorFlow's QuantizationDebugger, which
    computes each operation in both types from the inputs that it has in the integer file.

    Args:
        request: for int8.

    Raises:
        UsageError: an operation of the network does not exist in int8.
    """
    assert request.calibration is not None
    shown = replace(request, calibration=request.calibration[:IMAGES])
    debugger = tf.lite.experimental.QuantizationDebugger
    options = tf.lite.experimental.QuantizationDebugOptions
    with (
        tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch,
        warnings.catch_warnings(),
        converter_errors(request.precision),
    ):
        # TensorFlow's own interpreter tells that it is deprecated, and that debugging takes memory.
        warnings.simplefilter("ignore", UserWarning)
        saved_model.write_function(request, Path(scratch), 1, "float32", request.serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        content = calibrated(converter, request)
        opened = debugger(
            quant_debug_model_content=private.quantize(content, enable_numeric_verify=True),
            debug_dataset=lambda: images_of(shown),
            debug_options=options(layer_direct_compare_metrics={"noise": _noise, "power": _power}),
        )
        opened.run()
        table = io.StringIO()
        opened.layer_statistics_dump(table)
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
    """Returns the layer that computes a tensor.

    Args:
        tensor: the names of all operations that were fused into one, as
            "resnet20_1/stem_act_1/Relu;resnet20_1/stem_conv_1/convolution".
        operation: that computes it.
        names: of the network's layers.
        task: of the network.
    """
    if tensor.startswith("StatefulPartitionedCall"):  # the two outputs have lost their names
        return task.output_of_operation(operation)
    parts = [part for name in tensor.split(";") for part in name.split("/")]
    found = [name for part in parts for name in names if part in (name, f"{name}_1")]
    # Of what was fused, people know the convolution, not the activation behind it.
    return next((n for n in found if not n.endswith(("_act", "_norm"))), (found or [tensor])[0])


def _noise(exact: Any, integers: Any, scale: float, zero_point: int) -> float:
    values = (integers.astype(np.float32) - zero_point) * scale
    return float(np.square(exact - values, dtype=np.float64).mean())


def _power(exact: Any, integers: Any, scale: float, zero_point: int) -> float:
    return float(np.square(exact, dtype=np.float64).mean())
