"""Robustness: the score of a network on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cnnbench.evaluation.corruptions import CORRUPTIONS, NOTES, SEVERITIES, draws


def robustness(
    hits: Callable[[np.ndarray, np.ndarray], Any],
    batches: Iterable[tuple[np.ndarray, np.ndarray, int]],
) -> dict[str, Any]:
    """Measures the mean score under every corruption at every severity.

    The mean corruption error is the plain mean of the errors. Hendrycks & Dietterich 2019 divide
    each error by that of AlexNet, which is available for ImageNet only.

    Args:
        hits: maps (batch, height, width, channels) uint8 images and their targets to scores,
            (batch,).
        batches: from `evaluation_batches`, starting at the first example of the split.

    Returns:
        The keys of `cnnbench.evaluation.evaluate.Robustness`.
    """
    sums = {name: [0.0] * len(SEVERITIES) for name in CORRUPTIONS}
    examples = 0
    for images, targets, count in batches:
        for name, corrupt in CORRUPTIONS.items():
            for i, severity in enumerate(SEVERITIES):
                corrupted = [
                    corrupt(image, severity, draws(name, severity, position))
                    for position, image in enumerate(images, examples)
                ]
                found = np.asarray(hits(np.stack(corrupted), targets))[:count]
                sums[name][i] += float(found.sum(dtype=np.float64))
        examples += count
    scores = {name: [total / examples for total in row] for name, row in sums.items()}
    mean = float(np.mean(list(scores.values())))
    return {
        "examples": examples,
        "corruptions": scores,
        "mean_corruption_accuracy": mean,
        "mean_corruption_error": 1 - mean,
        "notes": list(NOTES),
    }
