"""Robustness: how right a network still is on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cnnbench.evaluation.corruptions import CORRUPTIONS, NOTES, SEVERITIES, draws
from cnnbench.tasks.classification import in_top_k


def robustness(
    logits_of: Callable[[np.ndarray], Any], batches: Iterable[tuple[np.ndarray, np.ndarray, int]]
) -> dict[str, Any]:
    """Measures the top-1 accuracy under every corruption in every severity.

    The mean corruption error is the plain mean of the errors; Hendrycks & Dietterich 2019 divide
    each by AlexNet's, which there is for ImageNet only.

    Args:
        logits_of: from (batch, height, width, channels) uint8 to (batch, classes).
        batches: as of `evaluation_batches`, each example at its place in the split.

    Returns:
        "examples", "corruptions" (five accuracies each), "mean_corruption_accuracy",
        "mean_corruption_error", and "notes" on what does not compare with published numbers.
    """
    right = {name: [0] * len(SEVERITIES) for name in CORRUPTIONS}
    examples = 0
    for images, labels, count in batches:
        for name, corrupt in CORRUPTIONS.items():
            for i, severity in enumerate(SEVERITIES):
                corrupted = [
                    corrupt(image, severity, draws(name, severity, position))
                    for position, image in enumerate(images, examples)
                ]
                hits = in_top_k(logits_of(np.stack(corrupted)), labels, 1).numpy()
                right[name][i] += int(hits[:count].sum())
        examples += count
    accuracies = {name: [hits / examples for hits in row] for name, row in right.items()}
    mean = float(np.mean(list(accuracies.values())))
    return {
        "examples": examples,
        "corruptions": accuracies,
        "mean_corruption_accuracy": mean,
        "mean_corruption_error": 1 - mean,
        "notes": list(NOTES),
    }
