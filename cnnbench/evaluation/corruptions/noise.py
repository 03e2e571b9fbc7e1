"""Noise corruptions: Gaussian, shot and impulse noise."""

from __future__ import annotations

import numpy as np

from cnnbench.evaluation.corruptions.corruption import corruption


@corruption(cifar=(0.04, 0.06, 0.08, 0.09, 0.10), imagenet=(0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(x: np.ndarray, random: np.random.Generator, scale: float) -> np.ndarray:
    """Adds Gaussian noise of standard deviation `scale` to each value."""
    return x + random.normal(scale=scale, size=x.shape)


@corruption(cifar=(500, 250, 100, 75, 50), imagenet=(60, 25, 12, 5, 3))
def shot_noise(x: np.ndarray, random: np.random.Generator, photons: float) -> np.ndarray:
    """Draws each value from a Poisson distribution; white has a mean of `photons` photons."""
    return random.poisson(x * photons) / photons


@corruption(cifar=(0.01, 0.02, 0.03, 0.05, 0.07), imagenet=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(x: np.ndarray, random: np.random.Generator, share: float) -> np.ndarray:
    """Sets a share of the values, per channel, to 0 or 1 (salt-and-pepper noise)."""
    hit, salt = random.random((2, *x.shape))
    return np.where(hit < share, salt < 0.5, x)
