"""Preprocessing of uint8 pixels; training and exports run the same TensorFlow code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf
from cnnbench.data import images as geometry
from cnnbench.data.examples import Dataset
from cnnbench.errors import UsageError
from cnnbench.registry.kinds import DataSpec

# Mean and standard deviation per color space, for data sets without published statistics.
COLOR_STATISTICS = {
    "grey": ((0.5,), (0.25,)),
    "rgb": ((0.5,) * 3, (0.25,) * 3),
    "bgr": ((0.5,) * 3, (0.25,) * 3),
    "hsv": ((0.5,) * 3, (0.25,) * 3),
    "yuv": ((0.5, 0.0, 0.0), (0.25, 0.25, 0.25)),
}
# ITU-R BT.601: luma, and blue and red differences scaled to +-0.436 and +-0.615.
LUMA = (0.299, 0.587, 0.114)
# The places of blue, green and red in RGB.
BGR = (2, 1, 0)
RGB_TO_GREY = tuple((weight,) for weight in LUMA)
RGB_TO_YUV = (
    (LUMA[0], -0.14714119, 0.61497538),
    (LUMA[1], -0.28886916, -0.51496512),
    (LUMA[2], 0.43601035, -0.10001026),
)


@dataclass(frozen=True)
class Preprocess:
    """Color conversion and normalization: (value / 255 in `color` - mean) / std."""

    color: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Any) -> Any:
        """Returns the preprocessed images, float32.

        Args:
            images: (batch, height, width, channels) uint8, or floats in [0, 255].
        """
        x = convert_color(tf.cast(images, tf.float32) * (1 / 255), self.color)
        scale = [1 / std for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return x * tf.constant(scale) + tf.constant(shift)


def convert_color(x: Any, color: str) -> Any:
    """Converts float images in [0, 1] to a color space.

    HSV is computed with elementary operations because TFLite has no operation for it.

    Args:
        x: (…, channels): grayscale if there is 1 channel, RGB if there are 3.
        color: "grey", "rgb", "bgr", "yuv" or "hsv".

    Returns:
        (…, channels of `color`); hue is in [0, 1].
    """
    channels = x.shape[-1]
    if color == "grey":
        return x if channels == 1 else x @ tf.constant(RGB_TO_GREY)
    if channels == 1:
        x = tf.concat([x, x, x], axis=-1)
    if color == "yuv":
        return x @ tf.constant(RGB_TO_YUV)
    if color == "bgr":
        return tf.gather(x, BGR, axis=-1)
    return _hsv(x) if color == "hsv" else x


def _hsv(rgb: Any) -> Any:
    red, green, blue = tf.unstack(rgb, axis=-1)
    value = tf.reduce_max(rgb, axis=-1)
    spread = value - tf.reduce_min(rgb, axis=-1)
    saturation = tf.math.divide_no_nan(spread, value)
    hue = tf.where(
        tf.equal(value, red),
        tf.math.divide_no_nan(green - blue, spread),
        tf.where(
            tf.equal(value, green),
            2 + tf.math.divide_no_nan(blue - red, spread),
            4 + tf.math.divide_no_nan(red - green, spread),
        ),
    )
    hue = hue / 6
    hue = tf.where(hue < 0, hue + 1, hue)
    return tf.stack([tf.where(spread > 0, hue, tf.zeros_like(hue)), saturation, value], axis=-1)


def preprocess(dataset: Dataset, data: DataSpec) -> Preprocess:
    """Returns the color conversion and normalization of a recipe's data.

    Raises:
        UsageError: the recipe's mean or std does not have one value per channel.
    """
    stored = "grey" if dataset.shape[2] == 1 else "rgb"
    color = data.color or stored
    mean, std = COLOR_STATISTICS[color]
    channels = len(mean)
    if dataset.mean and dataset.std and color in (stored, "rgb", "bgr"):
        # Statistics of grayscale images hold for each channel of RGB.
        mean = (dataset.mean * channels)[:channels]
        std = (dataset.std * channels)[:channels]
        if color == "bgr":
            mean, std = mean[::-1], std[::-1]
    mean, std = tuple(data.mean or mean), tuple(data.std or std)
    if len(mean) != channels or len(std) != channels:
        raise UsageError(
            f"mean has {len(mean)} values, std has {len(std)}",
            key="data.mean" if len(mean) != channels else "data.std",
            allowed=f"one per channel: {channels}",
        )
    return Preprocess(color, mean, std)


def fit(image: np.ndarray, data: DataSpec, size: tuple[int, int]) -> np.ndarray:
    """Fits an image to the network's input: scales its short side and crops the center."""
    short = short_side(data, size)
    if image.shape[:2] == size and short == max(size):
        return image
    return geometry.centre_crop(image, short, size, data.interpolation or "bilinear")


def reading(data: DataSpec, channels: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Returns the keyword arguments of `images.read` and `images.decode`.

    Args:
        data: a recipe's `data`.
        channels: of the images, 1 or 3.
        size: height and width of the network's input in pixels; None: as `data` says.
    """
    if size is None and data.image_size:
        size = data.image_size, data.image_size
    return {
        "channels": channels,
        "value_range": data.value_range and (data.value_range[0], data.value_range[1]),
        "short": short_side(data, size) if size else None,
    }


def short_side(data: DataSpec, size: tuple[int, int]) -> int:
    """Returns the length of an image's short side, in pixels, before the center crop."""
    return max(data.resize_short or 0, *size)
