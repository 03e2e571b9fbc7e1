"""Calibration: the training images that the activation ranges of integers are computed from."""

from __future__ import annotations

import numpy as np

from cnnbench.data.open import Access
from cnnbench.data.reader import first_images
from cnnbench.data.splits import training_splits
from cnnbench.errors import UsageError
from cnnbench.exports.options import CALIBRATION_METHODS
from cnnbench.runs import network
from cnnbench.runs.run import Run

EXAMPLES = 200
MIN_EXAMPLES = 10


def check(examples: int, method: str = "min_max") -> None:
    """Checks the number of calibration images and the method.

    Raises:
        UsageError: there are too few images, or the method is unknown.
    """
    if method not in CALIBRATION_METHODS:
        raise UsageError(
            f"unknown calibration method {method!r}",
            allowed=f"must be one of {', '.join(CALIBRATION_METHODS)}",
        )
    if examples < MIN_EXAMPLES:
        raise UsageError(
            f"{examples} calibration images are too few to compute ranges of activations",
            allowed=f"must be at least {MIN_EXAMPLES}, from the training split",
        )


def images(run: Run, examples: int, access: Access) -> np.ndarray:
    """Returns the first images of a run's training split, the same ones on every call.

    A copy of the image with the widest range of values, stretched to [0, 255], is appended, so that
    the calibrated range of the input covers all pixel values.

    Args:
        run: the run.
        examples: number of images; all of the training split if it has fewer.
        access: where data sets are stored.

    Returns:
        (images + 1, *pixel_shape) uint8, not augmented.

    Raises:
        UsageError: there are too few images.
        DataError: the training images are missing.
    """
    dataset = network.open_data(run, access)
    train = training_splits(dataset, run.recipe.data).train
    check(min(examples, len(train)))
    height, width, _ = run.data().input_shape
    pixels = first_images(train, run.recipe.data, (height, width), examples)
    return np.concatenate([pixels, _stretched(pixels)[None]])


def _stretched(pixels: np.ndarray) -> np.ndarray:
    """Returns a copy of the image with the widest range of values, stretched to [0, 255]."""
    lowest, highest = (f(pixels, axis=(1, 2, 3)).astype(np.float32) for f in (np.min, np.max))
    i = int((highest - lowest).argmax())
    span = max(highest[i] - lowest[i], 1)
    stretched = np.round((pixels[i] - lowest[i]) * (255 / span)).astype(np.uint8)
    if highest[i] == lowest[i]:  # every image has a single value
        stretched.flat[0] = 255
    return stretched
