"""TensorFlow's SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend.lazy import keras, tf
from cnnbench.exports.formats.format import Format, Loaded
from cnnbench.exports.formats.request import Request

FORMAT = Format(
    "TensorFlow SavedModel",
    "",
    "TensorFlow SavedModel: float32.",
    varies="TensorFlow numbers functions by a counter of the process, and fingerprint.pb has a "
    "random number",
)


def write(request: Request, folder: Path) -> None:
    """Writes a SavedModel whose `serving_default` takes what the request says, in any batch.

    With preprocessing inside, that is uint8 (0-255) images of any size, and `serve_float` takes
    float32 ones (0-1). Images of the network's size are taken as they are. Those of another are
    treated as `predict` does: the short side is scaled, bilinear with antialiasing, and the centre
    cut out.
    """
    archive = keras.export.ExportArchive()
    archive.track(request.net.model)
    if request.preprocessing:
        _add_endpoints_of_any_size(archive, request)
    else:
        shape = (None, *request.input_shape)
        spec = tf.TensorSpec(shape, request.input_dtype, name="images")
        names = _names(request)
        archive.add_endpoint("serve", lambda x: request.serve(x) | names, [spec])
    archive.write_out(str(folder), verbose=False)


def _names(request: Request) -> dict[str, Any]:
    """Returns the names of the classes, as an output, if there are any."""
    classes = request.net.classes
    return {"classes": tf.constant(classes)} if classes else {}


def _add_endpoints_of_any_size(archive: Any, request: Request) -> None:
    net = request.net
    height, width, channels = net.pixel_shape

    def scaled(images: Any) -> Any:
        size = tf.shape(images)[1:3]
        scale = net.short_side / tf.reduce_min(size)
        target = tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32)
        target = tf.maximum(target, (height, width))
        pixels = tf.image.resize(tf.cast(images, tf.float32), target, antialias=True)
        top, left = tf.unstack((target - (height, width)) // 2)
        return pixels[:, top : top + height, left : left + width]

    def serve(images: Any) -> dict[str, Any]:
        as_it_is = tf.reduce_all(tf.equal(tf.shape(images)[1:3], (height, width)))
        pixels = tf.cond(as_it_is, lambda: tf.cast(images, tf.float32), lambda: scaled(images))
        pixels.set_shape((None, height, width, channels))
        return net(pixels) | _names(request)

    any_size = (None, None, None, channels)
    archive.add_endpoint("serve", serve, [tf.TensorSpec(any_size, tf.uint8, name="images")])
    archive.add_endpoint(
        "serve_float",
        lambda images: serve(images * 255),
        [tf.TensorSpec(any_size, tf.float32, name="images")],
    )


def write_function(
    request: Request, folder: Path, batch: int | None, dtype: str, serve: Callable[[Any], Any]
) -> None:
    """Writes a SavedModel of one function of the network, for a converter to begin with.

    Args:
        request: whose network the function is of, and whose input shape it takes.
        folder: where to.
        batch: the batch size; None: any.
        dtype: of the images.
        serve: from images to the named outputs of the task.
    """
    archive = keras.export.ExportArchive()
    archive.track(request.net.model)
    spec = tf.TensorSpec((batch, *request.input_shape), dtype, name="images")
    archive.add_endpoint("serve", serve, [spec])
    archive.write_out(str(folder), verbose=False)


def load(path: Path) -> Loaded:
    """Opens a SavedModel in TensorFlow."""
    loaded = tf.saved_model.load(str(path))  # it has to outlive the function
    serve = loaded.signatures["serving_default"]
    ((key, spec),) = serve.structured_input_signature[1].items()
    names = [name for name, each in serve.structured_outputs.items() if each.dtype.is_floating]

    def run(images: Any, model: Any = loaded) -> dict[str, Any]:
        outputs = serve(**{key: tf.constant(images)})
        return {name: np.asarray(outputs[name].numpy(), np.float32) for name in names}

    return Loaded(run, spec.dtype == tf.uint8, spec.shape[0], lambda size: run)
