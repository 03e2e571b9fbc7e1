"""Keras's native format, with Keras's own layers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend.lazy import keras, tf
from cnnbench.data.preprocess import BGR, RGB_TO_GREY, RGB_TO_YUV, Preprocess
from cnnbench.errors import UsageError
from cnnbench.exports.formats.format import Format, Loaded, usable
from cnnbench.exports.formats.request import Request

FORMAT = Format(
    "Keras",
    "model.keras",
    "Keras's .keras file, float32.",
    varies="Keras writes the time of the export into the file",
)


def write(request: Request, folder: Path) -> None:
    """Writes model.keras, with the preprocessing as layers.

    Raises:
        UsageError: the network has a layer that Keras lacks.
    """
    net = request.net
    own = [type(x).__name__ for x in net.model.layers if type(x).__module__.startswith("cnnbench")]
    if own:
        raise UsageError(
            f"layer {own[0]} is cnnbench's own, so Keras could not open the file",
            allowed="choose another format",
        )
    images = keras.Input(request.input_shape, dtype=request.input_dtype, name="images")
    x = preprocessed(images, net.preprocess) if request.preprocessing else images
    folder.mkdir()
    outputs = net.task.keras_layers(net.model(x), net.loss)
    keras.Model(images, outputs, name=net.model.name).save(folder / "model.keras")


def preprocessed(images: Any, preprocess: Preprocess) -> Any:
    """Applies a Preprocess as Keras layers, and returns its output; see `Preprocess`."""
    x = keras.layers.Rescaling(1 / 255, name="to_shares")(images)
    channels, color = x.shape[-1], preprocess.color
    if channels == 1 and color != "grey":
        x, channels = keras.layers.Concatenate(name="grey_to_rgb")([x, x, x]), 3
    if channels == 3 and color in ("grey", "yuv"):
        matrix = np.array(RGB_TO_GREY if color == "grey" else RGB_TO_YUV, np.float32)
        product = keras.layers.Conv2D(
            matrix.shape[1], 1, use_bias=False, trainable=False, name=f"rgb_to_{color}"
        )
        x = product(x)
        product.set_weights([matrix[None, None]])
    if color == "bgr":
        x = keras.ops.take(x, BGR, axis=-1)
    if color == "hsv":
        x = keras.ops.image.rgb_to_hsv(x)
    scale = [1 / std for std in preprocess.std]
    shift = [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
    return keras.layers.Rescaling(scale, shift, name="normalise")(x)


def load(path: Path) -> Loaded:
    """Opens a .keras file."""
    model = keras.saving.load_model(path, compile=False)
    predict = tf.function(lambda images: model(images, training=False), autograph=False)
    (images,) = model.inputs

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = predict(tf.constant(batch))
        named = outputs if isinstance(outputs, dict) else {"output": outputs}
        return usable({name: each.numpy() for name, each in named.items()}, len(batch))

    return Loaded(run, images.dtype == "uint8", images.shape[0], lambda size: run)
