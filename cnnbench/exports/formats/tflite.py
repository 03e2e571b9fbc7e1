"""TFLite, in every precision of its converter.

- float32, float16 (weights) and dynamic (int8 weights, activation ranges found at inference):
  inputs are uint8 pixels or float32 normalized images, outputs are float32.
- int8: every operation on integers, as integer-only devices require. Pixels are uint8 with scale 1,
  and outputs uint8; normalized images are int8 with the scale of their range, and outputs int8.
- int16x8: int16 activations and int8 weights; inputs and outputs as in float32.
"""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend import private
from cnnbench.backend.lazy import tf
from cnnbench.compression.quantize import is_fake_quantized
from cnnbench.errors import UsageError, VerificationError
from cnnbench.exports.formats import saved_model, tflite_file
from cnnbench.exports.formats.format import CALIBRATED, Format, Loaded, usable
from cnnbench.exports.formats.request import Request
from cnnbench.exports.formats.tflite_trained import tflite_int8
from cnnbench.exports.options import PRECISIONS

FORMAT = Format("TFLite", "model.tflite", "TFLite, any precision.", precisions=PRECISIONS)
# Operations that pass integers on without changing their scale; the converter never keeps one of
# them in float on its own.
PASSED_ON = (
    "CONCATENATION",
    "DEPTH_TO_SPACE",
    "MAX_POOL_2D",
    "PAD",
    "RESHAPE",
    "SPLIT",
    "STRIDED_SLICE",
    "TRANSPOSE",
)


def write(request: Request, folder: Path) -> None:
    """Writes model.tflite, with batch size 1.

    Raises:
        UsageError: the network has an operation that TFLite lacks in the precision.
        VerificationError: an int8 file would rescale pixels, or the layers in float32 are not those
            of `request.keep_float`.
    """
    folder.mkdir()
    content = convert(request)
    if request.precision == "int8":
        _check_int8(content, request)
    if request.precision in CALIBRATED:
        content = tflite_file.compact(content)
    (folder / "model.tflite").write_bytes(content)


def convert(request: Request) -> bytes:
    """Returns the content of the TFLite file; see `write`."""
    net = request.net
    if request.precision == "int8" and is_fake_quantized(net.model):
        return tflite_int8(
            net.model,
            pixel_shape=request.input_shape,
            serve=lambda answer: net.task.serve(answer, net.loss),
            preprocess=net.preprocess if request.preprocessing else None,
        )
    # The integer converters need float inputs, because they have no cast from uint8.
    is_integer = request.precision in CALIBRATED
    dtype = "float32" if is_integer else request.input_dtype
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        saved_model.write_function(request, Path(scratch), 1, dtype, request.serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        with converter_errors(request.precision), warnings.catch_warnings():
            # Calibration runs TensorFlow's own interpreter, which warns that it is deprecated.
            warnings.simplefilter("ignore", UserWarning)
            return CONVERT[request.precision](converter, request)


def _float32(converter: Any, request: Request) -> bytes:
    return converter.convert()


def _float16(converter: Any, request: Request) -> bytes:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def _dynamic(converter: Any, request: Request) -> bytes:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def _int8(converter: Any, request: Request) -> bytes:
    dtype = tf.uint8 if request.preprocessing else tf.int8
    content = calibrated(converter, request)
    kept = list(request.keep_float)
    return private.quantize(
        content, input_data_type=dtype, output_data_type=dtype, denylisted_nodes=kept
    )


def _int16x8(converter: Any, request: Request) -> bytes:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: images_of(request)
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    ]
    content = converter.convert()
    return _with_pixels_in(content) if request.preprocessing else content


CONVERT = {
    "float32": _float32,
    "float16": _float16,
    "dynamic": _dynamic,
    "int8": _int8,
    "int16x8": _int16x8,
}


def calibrated(converter: Any, request: Request) -> bytes:
    """Returns a float32 file with calibrated tensor ranges, for the quantizer.

    Args:
        converter: a converter of a SavedModel with one function.
        request: has the calibration images; each range is the mean of its batches' ranges.
    """
    first, *others = map(_as_samples, request.calibration_batches())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    private.calibrate_only(converter)
    converter.representative_dataset = lambda: first
    content: bytes = converter.convert()
    if not others:
        return content
    model = tflite_file.opened(content)
    (graph,) = model.subgraphs
    ranges = [_ranges(graph)]
    for batch in others:
        observed = private.calibrate(content, batch)
        ranges.append(_ranges(_graph(observed)))
    for tensor, (low, high) in zip(graph.tensors, np.mean(ranges, axis=0), strict=True):
        if not np.isnan(low):
            tensor.quantization.min = np.array([low], np.float32)
            tensor.quantization.max = np.array([high], np.float32)
    return tflite_file.packed(model)


def _ranges(graph: Any) -> np.ndarray:
    """Returns the minimum and maximum of each tensor, (tensors, 2), NaN where not observed."""
    ranges = np.full((len(graph.tensors), 2), np.nan)
    for i, tensor in enumerate(graph.tensors):
        about = tensor.quantization
        if about is not None and about.min is not None:
            ranges[i] = about.min[0], about.max[0]
    return ranges


def images_of(request: Request) -> list[list[np.ndarray]]:
    """Returns the calibration images as converters and debuggers take them."""
    return _as_samples(request.calibration_inputs())


def _as_samples(images: np.ndarray) -> list[list[np.ndarray]]:
    return [[image[None]] for image in images]


@contextlib.contextmanager
def converter_errors(precision: str) -> Iterator[None]:
    """Turns the converter's long error message into a UsageError of one line."""
    try:
        yield
    # The integer quantizers raise RuntimeError.
    except (private.converter_error(), RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        relevant = [x for x in lines if "not yet supported" in x or " op is " in x] or lines
        what = relevant[0].rpartition("error: ")[2][:300]
        raise UsageError(
            f"cannot be converted to TFLite {precision}: {what}",
            allowed="choose another precision or format",
        ) from error


def _with_pixels_in(content: bytes) -> bytes:
    """Inserts a cast from uint8 before the float32 input, as the 16x8 quantizer rejects one."""
    from ai_edge_litert import schema_py_generated as schema

    model = tflite_file.opened(content)
    (graph,) = model.subgraphs
    (image,) = graph.inputs
    pixels = copy.copy(graph.tensors[image])
    pixels.type = schema.TensorType.UINT8
    pixels.name = b"pixels"
    graph.tensors.append(pixels)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
    code.version = 1
    model.operatorCodes.append(code)
    cast = schema.OperatorT()
    cast.opcodeIndex = len(model.operatorCodes) - 1
    cast.inputs, cast.outputs = [len(graph.tensors) - 1], [image]
    cast.builtinOptionsType = schema.BuiltinOptions.CastOptions
    cast.builtinOptions = schema.CastOptionsT()
    cast.builtinOptions.inDataType = schema.TensorType.UINT8
    cast.builtinOptions.outDataType = schema.TensorType.FLOAT32
    graph.operators.insert(0, cast)
    graph.inputs = cast.inputs
    for signature in model.signatureDefs:
        signature.inputs[0].tensorIndex = cast.inputs[0]
    return tflite_file.packed(model)


def input_type(content: bytes) -> dict[str, Any]:
    """Returns the "dtype", "scale" and "zero_point" of an int8 file's input."""
    from ai_edge_litert.schema_py_generated import TensorType

    graph = _graph(content)
    image = graph.tensors[graph.inputs[0]]
    dtypes = {TensorType.UINT8: "uint8", TensorType.INT8: "int8", TensorType.FLOAT32: "float32"}
    (scale,), (zero_point,) = image.quantization.scale, image.quantization.zeroPoint
    return {"dtype": dtypes[image.type], "scale": float(scale), "zero_point": int(zero_point)}


def _check_int8(content: bytes, request: Request) -> None:
    """Checks that a file takes unscaled pixels, and is in float32 only where requested."""
    found = input_type(content)
    wanted = {"dtype": "uint8", "scale": 1.0, "zero_point": 0}
    if request.preprocessing and found | {"scale": round(found["scale"], 6)} != wanted:
        raise VerificationError(
            f"int8: the input is {found}", allowed=f"must be {wanted}, to take unscaled pixels"
        )
    found = _float_outputs(content)
    for kept in request.keep_float:
        # If the output is quantized afterwards, the float tensor's name gets a number appended.
        names = [name for name in found if re.fullmatch(re.escape(kept) + r"\d*", name)]
        if not names:
            raise VerificationError(f"int8: the converter did not keep {kept} in float32")
        del found[min(names, key=len)]
    for name, operation in found.items():
        raise VerificationError(f"int8: the converter left {name} ({operation}) in float32")


def _float_outputs(content: bytes) -> dict[str, str]:
    """Returns the operations that compute float tensors, by the name of the tensor.

    Operations that only dequantize or move values are left out.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = tflite_file.opened(content)
    (graph,) = model.subgraphs
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    found: dict[str, str] = {}
    for each in graph.operators:
        operation = names[model.operatorCodes[each.opcodeIndex].builtinCode]
        if operation not in ("DEQUANTIZE", *PASSED_ON):
            outputs = (graph.tensors[i] for i in each.outputs)
            floats = (x for x in outputs if x.type == schema.TensorType.FLOAT32)
            found |= {x.name.decode(): operation for x in floats}
    return found


def _graph(content: bytes) -> Any:
    (graph,) = tflite_file.opened(content).subgraphs
    return graph


def load(path: Path) -> Loaded:
    """Opens a file in LiteRT's interpreter, with its default of one thread."""
    takes_pixels, batch, run = _open(path, None)

    def resized(size: int) -> Any:
        try:
            return _open(path, size)[2]
        except (RuntimeError, ValueError):  # an operation has a fixed batch size
            return None

    return Loaded(run, takes_pixels, batch, resized)


def _open(path: Path, size: int | None) -> tuple[bool, int, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (images,) = interpreter.get_input_details()
    shape = images["shape"]
    if size is not None:
        interpreter.resize_tensor_input(images["index"], [size, *shape[1:]])
    interpreter.allocate_tensors()
    outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
    if interpreter.get_signature_list():
        outputs = interpreter.get_signature_runner().get_output_details()
    takes_pixels = images["dtype"] == np.uint8
    scale, zero_point = images["quantization"]

    def output(detail: dict[str, Any]) -> np.ndarray:
        values = interpreter.get_tensor(detail["index"]).astype(np.float32)
        step, zero = detail["quantization"]
        return (values - zero) * step if step else values

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        if not takes_pixels and scale:
            limits = np.iinfo(images["dtype"])
            batch = np.clip(np.round(batch / scale) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(images["index"], batch.astype(images["dtype"], copy=False))
        interpreter.invoke()
        return usable({name: output(detail) for name, detail in outputs.items()}, len(batch))

    return takes_pixels, int(shape[0]), run
