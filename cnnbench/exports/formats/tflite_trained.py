"""TFLite int8 files of networks trained with quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnbench.backend.lazy import keras, tf
from cnnbench.compression.quantize import moving_ranges
from cnnbench.errors import UsageError, VerificationError


def tflite_int8(
    model: Any,
    *,
    pixel_shape: tuple[int, int, int],
    serve: Callable[[Any], dict[str, Any]],
    preprocess: Any = None,
) -> bytes:
    """Returns the content of an integer-only TFLite file with the model's own ranges.

    Args:
        model: an 8-bit model from `fake_quantized`, trained or calibrated.
        pixel_shape: (height, width, channels) of the file's input; its batch size is 1.
        serve: maps the model's output to the file's named outputs.
        preprocess: maps pixels in [0, 255] to the model's input; in the file it becomes a 1x1
            convolution of uint8 pixels. None: the file takes the model's input, as int8.

    Raises:
        UsageError: the ranges were never set, the model does not have 8 bits, or the preprocessing
            is not linear in the pixels.
        VerificationError: a tensor other than an output is a float.
    """
    from cnnbench.compression.fake_quant import FixedRange

    frozen = _frozen(model)
    kernel, bias = _as_convolution(preprocess, pixel_shape[-1]) if preprocess else (None, None)

    def compute(images: Any) -> dict[str, Any]:
        if preprocess:
            pixels = FixedRange(0.0, 255.0)(images)
            images = tf.nn.conv2d(pixels, kernel, 1, "VALID") + bias
        return serve(frozen(images, training=False))

    with tempfile.TemporaryDirectory(prefix="cnnbench-") as folder:
        archive = keras.export.ExportArchive()
        archive.track(frozen)
        spec = tf.TensorSpec((1, *pixel_shape), tf.float32, name="images")
        archive.add_endpoint("serve", compute, [spec])
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # TFLITE_BUILTINS_INT8 would require calibration images, although the ranges are known;
        # what it guarantees is checked below instead.
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.uint8 if preprocess else tf.int8
        converter.inference_output_type = converter.inference_input_type
        content: bytes = converter.convert()
    _check_integers(content)
    return content


def _frozen(model: Any) -> Any:
    """Returns a copy of a fake-quantized model with rounded kernels and fixed ranges."""
    from cnnbench.compression import fake_quant

    kinds = {
        fake_quant.FakeQuantConv2D: keras.layers.Conv2D,
        fake_quant.FakeQuantDepthwiseConv2D: keras.layers.DepthwiseConv2D,
        fake_quant.FakeQuantDense: keras.layers.Dense,
    }
    moving = moving_ranges(model)
    if not any(np.any(each.maximum > each.minimum) for each in moving):
        raise UsageError(f"{model.name} has no ranges", allowed="train or calibrate it first")
    if any(each.bits != 8 for each in moving):
        raise UsageError(f"{model.name} has {moving[0].bits} bits", allowed="must be 8 for TFLite")

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, fake_quant.MovingRange):
            low, high = (float(end) for end in layer.range())
            # If all values are 0, any range will do.
            high = high if high > low else 1.0
            return fake_quant.FixedRange(low, high, name=layer.name, dtype="float32")
        kind = kinds.get(type(layer), type(layer))
        if kind is not type(layer):
            del config["bits"]
        return kind.from_config(config)

    copy = keras.models.clone_model(
        model,
        clone_function=clone,
        # Unlike a moving range, a fixed range takes no further arguments.
        call_function=lambda layer, *args, **_: layer(*args),
    )
    for layer in model.layers:
        if type(layer) in kinds:
            weights = [layer.kernel_on_grid(), *map(_unequal, layer.get_weights()[1:])]
            copy.get_layer(layer.name).set_weights(weights)
    return copy


def _unequal(bias: np.ndarray) -> np.ndarray:
    """Returns a bias whose values are not all equal, by nudging the first one if necessary.

    The converter would give equal values a single scale, that of the first channel, where integers
    need one per channel.
    """
    if np.ptp(bias) != 0:
        return bias
    return np.r_[np.nextafter(bias[:1], np.float32(np.inf)), bias[1:]]


def _as_convolution(preprocess: Any, channels: int) -> tuple[Any, Any]:
    """Returns the kernel and bias of the 1x1 convolution that is equal to the preprocessing."""
    corners = np.concatenate([np.zeros((1, channels)), 255 * np.eye(channels), [[77.0] * channels]])
    black, *primaries, grey = preprocess(corners[:, None, None].astype(np.float32)).numpy()[:, 0, 0]
    kernel = (np.stack(primaries) - black) / 255
    if not np.allclose(77 * kernel.sum(0) + black, grey, atol=1e-4):
        raise UsageError(
            "the preprocessing is not linear in the pixels", allowed="hsv is not supported"
        )
    return tf.constant(kernel[None, None]), tf.constant(black)


def _check_integers(content: bytes) -> None:
    """Raises a VerificationError if a tensor of a TFLite file other than an output is a float."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    ends = {detail["index"] for detail in interpreter.get_output_details()}
    floats = [
        detail["name"]
        for detail in interpreter.get_tensor_details()
        if np.issubdtype(detail["dtype"], np.floating) and detail["index"] not in ends
    ]
    if floats:
        raise VerificationError(f"TFLite would compute in floats: {', '.join(floats[:5])}")
