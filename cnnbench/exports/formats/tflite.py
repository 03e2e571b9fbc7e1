"""TFLite, in every precision that its converter has.

- float32, float16 (weights) and dynamic (int8 weights, ranges of activations found as it runs):
  float in their middle, so uint8 pixels in and float32 outputs.
- int8: every operation on integers, as integer-only devices need. Pixels go in as they are, uint8
  of scale 1, and uint8 comes out; normalised images, int8 of their scale, and int8 comes out.
- int16x8: int16 activations and int8 weights; in and out as the float ones.
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
from cnnbench.exports.formats.format import CALIBRATED, Format, Loaded
from cnnbench.exports.formats.request import Request
from cnnbench.exports.formats.tflite_trained import tflite_int8
from cnnbench.exports.options import PRECISIONS

FORMAT = Format("TFLite", "model.tflite", "TFLite, in any precision.", precisions=PRECISIONS)
# Operations that pass on integers, of the same scale, as they come; the converter keeps none of
# them in float by itself.
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
    """Writes model.tflite, for one image.

    Raises:
        UsageError: an operation of the network does not exist in the precision.
        VerificationError: pixels would not go into an int8 file as they are, or another layer is in
            float32 than those that are to be kept so.
    """
    folder.mkdir()
    content = convert(request)
    if request.precision == "int8":
        _check_int8(content, request)
    if request.precision in CALIBRATED:
        content = tflite_file.compact(content)
    (folder / "model.tflite").write_bytes(content)


def convert(request: Request) -> bytes:
    """Converts a network; see `write`."""
    net = request.net
    if request.precision == "int8" and is_fake_quantized(net.model):
        return tflite_int8(
            net.model,
            pixel_shape=request.input_shape,
            serve=lambda answer: net.task.serve(answer, net.loss),
            preprocess=net.preprocess if request.preprocessing else None,
        )
    # The integer converters begin with float inputs, for there is no integer cast from pixels.
    is_integer = request.precision in CALIBRATED
    dtype = "float32" if is_integer else request.input_dtype
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        saved_model.write_function(request, Path(scratch), 1, dtype, request.serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        with converter_errors(request.precision), warnings.catch_warnings():
            # Calibration runs TensorFlow's own interpreter, which tells that it is deprecated.
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
    """Returns a float32 file whose tensors have their ranges, for the quantizer.

    Args:
        converter: of a SavedModel of one function.
        request: with calibration images; a range is the mean of those of its batches.
    """
    first, *others = map(_fed, request.calibration_batches())
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
    """Returns the least and the greatest value of each tensor, NaN where none were observed."""
    ranges = np.full((len(graph.tensors), 2), np.nan)
    for i, tensor in enumerate(graph.tensors):
        about = tensor.quantization
        if about is not None and about.min is not None:
            ranges[i] = about.min[0], about.max[0]
    return ranges


def images_of(request: Request) -> list[list[np.ndarray]]:
    """Returns the calibration images as converters and debuggers want them."""
    return _fed(request.calibration_inputs())


def _fed(images: np.ndarray) -> list[list[np.ndarray]]:
    return [[image[None]] for image in images]


@contextlib.contextmanager
def converter_errors(precision: str) -> Iterator[None]:
    """Turns the converter's pages on what it cannot do into one line."""
    try:
        yield
    # The integer quantizers raise RuntimeError.
    except (private.converter_error(), RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [x for x in lines if "not yet supported" in x or " op is " in x] or lines
        what = telling[0].rpartition("error: ")[2][:300]
        raise UsageError(
            f"cannot be converted to TFLite {precision}: {what}",
            allowed="another precision or format",
        ) from error


def _with_pixels_in(content: bytes) -> bytes:
    """Puts a cast from uint8 before a file's float32 input, which the 16x8 quantizer refuses."""
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
    """Returns the "dtype" of an int8 file's input, its "scale" and its "zero_point"."""
    from ai_edge_litert.schema_py_generated import TensorType

    graph = _graph(content)
    image = graph.tensors[graph.inputs[0]]
    dtypes = {TensorType.UINT8: "uint8", TensorType.INT8: "int8", TensorType.FLOAT32: "float32"}
    (scale,), (zero_point,) = image.quantization.scale, image.quantization.zeroPoint
    return {"dtype": dtypes[image.type], "scale": float(scale), "zero_point": int(zero_point)}


def _check_int8(content: bytes, request: Request) -> None:
    """Refuses a file that does not take pixels as they are, or did not keep what was to be kept."""
    found = input_type(content)
    wanted = {"dtype": "uint8", "scale": 1.0, "zero_point": 0}
    if request.preprocessing and found | {"scale": round(found["scale"], 6)} != wanted:
        raise VerificationError(
            f"int8: the input is {found}", allowed=f"{wanted}, so that pixels go in as they are"
        )
    found = _float_outputs(content)
    for kept in request.keep_float:
        # An output that is turned into integers after all leaves its name, with a number, behind.
        names = [name for name in found if re.fullmatch(re.escape(kept) + r"\d*", name)]
        if not names:
            raise VerificationError(f"int8: the converter did not keep {kept} in float32")
        del found[min(names, key=len)]
    for name, operation in found.items():
        raise VerificationError(f"int8: the converter left {name} ({operation}) in float32")


def _float_outputs(content: bytes) -> dict[str, str]:
    """Returns the name of each tensor that is computed in floats, and its operation.

    Those that only turn integers into floats or pass these on are left out.
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
    """Opens a file in LiteRT's interpreter, on one thread as is its default."""
    takes_pixels, batch, run = _open(path, None)

    def resized(size: int) -> Any:
        try:
            return _open(path, size)[2]
        except (RuntimeError, ValueError):  # the file has its batch size in an operation
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
            ends = np.iinfo(images["dtype"])
            batch = np.clip(np.round(batch / scale) + zero_point, ends.min, ends.max)
        interpreter.set_tensor(images["index"], batch.astype(images["dtype"], copy=False))
        interpreter.invoke()
        return {name: output(detail) for name, detail in outputs.items()}

    return takes_pixels, int(shape[0]), run
