"""Keras's own file, of layers that Keras has itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend.lazy import keras, tf
from cnnbench.data.preprocess import RGB_TO_GREY, RGB_TO_YUV, Preprocess
from cnnbench.errors import UsageError
from cnnbench.exports.formats.format import Loaded, as_logits, output_name
from cnnbench.exports.formats.request import Request
from cnnbench.registry.kinds import LOSSES


def write(request: Request, folder: Path) -> None:
    """Writes model.keras, with the preprocessing as layers.

    Raises:
        UsageError: the network has a layer that Keras does not know.
    """
    net = request.net
    own = [type(x).__name__ for x in net.model.layers if type(x).__module__.startswith("cnnbench")]
    if own:
        raise UsageError(
            f"the layer {own[0]} is cnnbench's own, and Keras could not open the file",
            allowed="another format",
        )
    images = keras.Input(request.input_shape, dtype=request.input_dtype, name="images")
    x = preprocessed(images, net.preprocess) if request.preprocessing else images
    logits = net.model(x)
    activation = LOSSES.get(net.loss).facts["probabilities"]
    probabilities = keras.layers.Activation(activation, name="probabilities")(logits)
    folder.mkdir()
    outputs = {"logits": logits, "probabilities": probabilities}
    keras.Model(images, outputs, name=net.model.name).save(folder / "model.keras")


def preprocessed(images: Any, preprocess: Preprocess) -> Any:
    """Does with layers what a Preprocess does with operations; see there."""
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
    if color == "hsv":
        x = keras.ops.image.rgb_to_hsv(x)
    scale = [1 / std for std in preprocess.std]
    shift = [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
    return keras.layers.Rescaling(scale, shift, name="normalise")(x)


def load(path: Path, output: str = "logits") -> Loaded:
    """Opens a .keras file."""
    model = keras.saving.load_model(path, compile=False)
    answer = tf.function(lambda images: model(images, training=False), autograph=False)
    (images,) = model.inputs
    outputs = model.output if isinstance(model.output, dict) else {"": model.output}
    name = output_name(sorted(outputs), output)

    def run(batch: np.ndarray) -> np.ndarray:
        out = answer(tf.constant(batch))
        return as_logits(name, (out[name] if name else out).numpy())

    return Loaded(run, images.dtype == "uint8", images.shape[0], lambda size: run)
