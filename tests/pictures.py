"""Pictures for the tests of augmentation, and how an operation is applied to them."""

import numpy as np
from PIL import Image

from cnnbench.data.augment import operations

NEAREST, BILINEAR = Image.Resampling.NEAREST, Image.Resampling.BILINEAR


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def noise(*shape, low=0, high=256, seed=0):
    return generator(seed).integers(low, high, shape, np.uint8)


def smooth(size=32):
    """Waves of a different length and phase in each channel, with values away from 0 and 255."""
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(5 * x + 3 * y + k) + np.cos((4 + k) * y - 2 * x) for k in range(3)]
    return np.round(120 + 45 * np.stack(waves, -1)).astype(np.uint8)


def gradient():
    """Every value once."""
    return np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def run(operation, image, *arguments):
    return operations.to_array(operation(operations.to_picture(image), *arguments))


def luma(image):
    return np.floor(image @ [0.299, 0.587, 0.114] + 0.5)[..., None]
