"""Calibration: the training images whose activations give integer artifacts their ranges."""

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
    """Refuses too few examples, and a method that there is not.

    Raises:
        UsageError: the message says why.
    """
    if method not in CALIBRATION_METHODS:
        raise UsageError(
            f"there is no calibration method {method!r}", allowed=", ".join(CALIBRATION_METHODS)
        )
    if examples < MIN_EXAMPLES:
        raise UsageError(
            f"calibration on {examples} images: too few to tell the ranges of activations",
            allowed=f"at least {MIN_EXAMPLES}, of the training split",
        )


def images(run: Run, examples: int, access: Access) -> np.ndarray:
    """Returns training images of a run, always the same ones, and never any it is tested on.

    One more is that with the widest range of values, stretched to 0-255, so that the range of the
    input is known to be that of all pixels.

    Args:
        run: the run.
        examples: how many, of as many as it was trained on.
        access: where data sets lie.

    Returns:
        (images + 1, *pixel_shape) uint8, not augmented.

    Raises:
        UsageError: there are too few.
        DataError: the training images are not there.
    """
    dataset = network.open_data(run, access)
    train = training_splits(dataset, run.recipe.data).train
    check(min(examples, len(train)))
    height, width, _ = run.data().input_shape
    pixels = first_images(train, run.recipe.data, (height, width), examples)
    return np.concatenate([pixels, _stretched(pixels)[None]])


def _stretched(pixels: np.ndarray) -> np.ndarray:
    """Returns the image with the widest range of values, as if it had all of 0 to 255."""
    lowest, highest = (f(pixels, axis=(1, 2, 3)).astype(np.float32) for f in (np.min, np.max))
    i = int((highest - lowest).argmax())
    span = max(highest[i] - lowest[i], 1)
    stretched = np.round((pixels[i] - lowest[i]) * (255 / span)).astype(np.uint8)
    if highest[i] == lowest[i]:  # every image is of one colour
        stretched.flat[0] = 255
    return stretched
