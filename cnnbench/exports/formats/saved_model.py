"""TensorFlow's SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.exports.formats.format import Format, Loaded, usable
from cnnbench.exports.formats.request import Request

FORMAT = Format(
    "TensorFlow SavedModel",
    "",
    "TensorFlow SavedModel, float32.",
    varies="TensorFlow numbers functions by a process-wide counter, and fingerprint.pb has a "
    "random number",
)


def write(request: Request, folder: Path) -> None:
    """Writes a SavedModel with a `serving_default` signature, for any batch size.

    With preprocessing inside, it takes uint8 images in [0, 255] of any size, and a second endpoint,
    `serve_float`, takes float32 images in [0, 1]. Images of the network's size are used as they
    are. Others are resized as in `predict`: the short side is scaled with antialiasing, and the
    center cropped.
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
    """Returns the class names as an output, if there are any."""
    classes = request.net.classes
    return {"classes": tf.constant(classes)} if classes else {}


def _add_endpoints_of_any_size(archive: Any, request: Request) -> None:
    net = request.net
    height, width, channels = net.pixel_shape

    def scaled(images: Any) -> Any:
        shape = tf.shape(images, tf.int64)[1:3]
        target, corner = crop_geometry(shape, net.short_side, (height, width))
        pixels = tf.image.resize(
            tf.cast(images, tf.float32), target, net.interpolation, antialias=True
        )
        pixels = tf.clip_by_value(pixels, 0, 255)  # bicubic overshoots
        top, left = tf.unstack(corner)
        return pixels[:, top : top + height, left : left + width]

    def serve(images: Any) -> dict[str, Any]:
        fits = tf.reduce_all(tf.equal(tf.shape(images)[1:3], (height, width)))
        pixels = tf.cond(fits, lambda: tf.cast(images, tf.float32), lambda: scaled(images))
        pixels.set_shape((None, height, width, channels))
        return net(pixels) | _names(request)

    any_size = (None, None, None, channels)
    archive.add_endpoint("serve", serve, [tf.TensorSpec(any_size, tf.uint8, name="images")])
    archive.add_endpoint(
        "serve_float",
        lambda images: serve(images * 255),
        [tf.TensorSpec(any_size, tf.float32, name="images")],
    )


def crop_geometry(shape: Any, short: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """Returns what data.images.crop_geometry does, as two (2,) int32 tensors.

    Args:
        shape: (2,) int64, height and width of the images.
        short: length that the short side is scaled to, in pixels.
        size: height and width of the crop.
    """
    target = tf.cast(short * shape // tf.reduce_min(shape), tf.int32)
    return target, tf.cast(tf.round((target - size) / 2), tf.int32)  # half to even


def write_function(
    request: Request, folder: Path, batch: int | None, dtype: str, serve: Callable[[Any], Any]
) -> None:
    """Writes a SavedModel of one function of the network, as input of a converter.

    Args:
        request: has the network and its input shape.
        folder: folder to write to.
        batch: the batch size; None: any.
        dtype: dtype of the images.
        serve: maps images to the task's named outputs.
    """
    archive = keras.export.ExportArchive()
    archive.track(request.net.model)
    spec = tf.TensorSpec((batch, *request.input_shape), dtype, name="images")
    archive.add_endpoint("serve", serve, [spec])
    archive.write_out(str(folder), verbose=False)


def load(path: Path) -> Loaded:
    """Opens a SavedModel in TensorFlow."""
    loaded = tf.saved_model.load(str(path))  # must outlive its signature
    serve = loaded.signatures["serving_default"]
    ((key, spec),) = serve.structured_input_signature[1].items()

    def run(images: Any, model: Any = loaded) -> dict[str, Any]:
        outputs = serve(**{key: tf.constant(images)})
        return usable({name: each.numpy() for name, each in outputs.items()}, len(images))

    return Loaded(run, spec.dtype == tf.uint8, spec.shape[0], lambda size: run)
