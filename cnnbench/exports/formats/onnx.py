"""ONNX, in float32 and int8."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf
from cnnbench.errors import CnnbenchError, UsageError
from cnnbench.exports.formats.format import Format, Loaded, usable
from cnnbench.exports.formats.request import Request

FORMAT = Format(
    "ONNX",
    "model.onnx",
    "ONNX, float32 or int8.",
    precisions=("float32", "int8"),
    packages=("onnx", "tf2onnx", "onnxruntime"),
)
OPSET = 18
# Operations to quantize: those that take time. Others, such as shape arithmetic, stay as they are.
QUANTIZED = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Gemm",
    "GlobalAveragePool",
    "HardSigmoid",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Relu",
    "Sigmoid",
)


def write(request: Request, folder: Path) -> None:
    """Writes model.onnx, which takes any batch size.

    Raises:
        UsageError: ONNX lacks an operation of the network.
    """
    folder.mkdir()
    file = folder / "model.onnx"
    with _converter_errors(request.precision):
        _write(_converted(request), file)
        if request.precision == "int8":
            _quantize(request, file)


@contextlib.contextmanager
def _converter_errors(precision: str) -> Iterator[None]:
    """Turns a converter's error into a UsageError of one line."""
    try:
        yield
    except (CnnbenchError, OSError):
        raise
    except Exception as error:  # tf2onnx and onnxruntime have no error classes of their own
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UsageError(
            f"cannot be converted to ONNX {precision}: {type(error).__name__}: {first[:300]}",
            allowed="choose another precision or format",
        ) from error


def _converted(request: Request) -> Any:
    import onnx
    import tf2onnx

    spec = tf.TensorSpec((None, *request.input_shape), request.input_dtype, name="images")
    serve = tf.function(request.serve, autograph=False)
    with _inlined():
        model, _ = tf2onnx.convert.from_function(
            serve, input_signature=[spec], opset=OPSET, custom_op_handlers={"Erfc": (_erfc, [])}
        )
    unknown = {n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, n.domain)}
    if unknown:  # tf2onnx only logs them
        raise UsageError(
            f"cannot be converted to ONNX, which lacks {', '.join(sorted(unknown))}",
            allowed="choose another format",
        )
    model.graph.doc_string = ""  # a function's name, with a counter that varies
    return _renumbered(model)


@contextlib.contextmanager
def _inlined() -> Iterator[None]:
    """Inlines functions that a traced function calls.

    Keras wraps grouped convolutions in functions compiled by XLA, which tf2onnx cannot convert.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Replaces erfc(x), which GELU uses and ONNX lacks, by 1 - erf(x)."""
    (output,) = node.output
    shape, dtype = graph.get_shape(output), graph.get_dtype(output)
    graph.remove_node(name)
    one = graph.make_const(f"{name}/one", np.ones((), np.float32))
    erf = graph.make_node("Erf", node.input, name=f"{name}/erf")
    graph.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=name,
        outputs=[output],
        shapes=[shape],
        dtypes=[dtype],
    )


def _renumbered(model: Any) -> Any:
    """Renumbers the names that tf2onnx made by position instead of by a process-wide counter."""
    graph = model.graph
    names: dict[str, str] = {}
    constants = {tensor.name for tensor in graph.initializer}

    def named(old: str) -> str:
        stem, number = re.subn(r"__\d+", "", old)
        if not number:
            return old
        kind = "constant" if old in constants else stem
        return names.setdefault(old, f"{kind}__{len(names)}")

    for node in graph.node:
        # tf2onnx names a shared constant after either of its uses.
        node.input[:] = [named(name) for name in node.input]
        node.output[:] = [named(name) for name in node.output]
        node.name = named(f"{node.name}__0") if re.search(r"__\d+", node.name) else node.name
    for tensor in (*graph.initializer, *graph.value_info):
        tensor.name = named(tensor.name)
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    ordered = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    return model


def _quantize(request: Request, file: Path) -> None:
    """Quantizes a file statically, per channel, with ranges from the calibration images."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    is_averaged = request.calibration_method == "average_min_max"
    if is_averaged:
        batches = request.calibration_batches()
    else:
        batches = list(request.calibration_inputs()[:, None])
    images = iter([{"images": batch.astype(request.input_dtype)} for batch in batches])

    class Images(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(images, None)

    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        folded = Path(scratch) / "folded.onnx"
        quant_pre_process(file, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            file,
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # x86 processors without VNNI add pairs of products of uint8 and int8 in 16 bits, which
            # saturate and shrink the logits. Products of uint8 and uint8 are exact.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=list(QUANTIZED),
            # All batches are collected at once, so the "moving" average is their plain mean.
            extra_options={"CalibMovingAverage": is_averaged},
        )
    import onnx

    _write(onnx.load(file), file)


def _write(model: Any, file: Path) -> None:
    file.write_bytes(model.SerializeToString(deterministic=True))


def load(path: Path) -> Loaded:
    """Opens a file in ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    names = [each.name for each in session.get_outputs()]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = session.run(names, {images.name: batch})
        return usable(dict(zip(names, outputs, strict=True)), len(batch))

    fixed_batch = images.shape[0] if isinstance(images.shape[0], int) else None
    return Loaded(run, images.type == "tensor(uint8)", fixed_batch, lambda size: run)
