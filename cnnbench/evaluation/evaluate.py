"""Evaluation: how right a trained network is, how sure, how fast, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf
from cnnbench.data.open import Access
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import evaluation_examples
from cnnbench.evaluation.tta import TTA
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.recipe.sections import Target
from cnnbench.runs import network
from cnnbench.runs.network import Network
from cnnbench.runs.run import Run
from cnnbench.system import files
from cnnbench.system.measure import latency_ms, peak_memory_mb
from cnnbench.tasks.classification import (
    _per_class,
    _scores,
    calibration_error,
    confusion,
    in_top_k,
    probabilities,
)


def evaluate(
    run: Run,
    *,
    split: str = "test",
    weights: str = "best",
    tta: str | None = None,
    robust_examples: int | None = None,
    access: Access | None = None,
) -> dict[str, Any]:
    """Measures a run's network on a split and writes eval.json.

    Of another split, other weights or test-time augmentation, or with robustness, the file is
    eval-validation.json, eval-last.json, eval-flip.json, eval-robust.json, ….

    Args:
        run: a run with weights.
        split: "test" or "validation".
        weights: "best" by validation, or "last".
        tta: test-time augmentation, a name in TTA; None: as the recipe says.
        robust_examples: how many examples, at most, to measure robustness on; None: not measured.
        access: where data sets lie; None: where the training found them.

    Returns:
        What the file says; the README names its keys.

    Raises:
        RunError: the run has no weights, or the data is not that of the training.
        DataError: the data is not there or an image is bad.
        UsageError: the run has no validation split.
    """
    net = network.restore(run, weights=weights)
    recipe, size = run.recipe, net.pixel_shape[:2]
    tta = tta or recipe.evaluation.tta
    answer = _answering(net, tta)
    plain = _answering(net, "none") if tta != "none" else None
    dataset = network.open_data(run, access or Access())
    examples, skipped = evaluation_examples(dataset, recipe.data, split)

    @tf.function(autograph=False)
    def measure(images: Any, labels: Any) -> dict[str, Any]:
        return _scores(answer(images)["logits"], labels, recipe)

    rows: list[dict[str, np.ndarray]] = []
    truth: list[np.ndarray] = []
    seconds: list[float] = []
    batch_size = min(recipe.data.batch_size, len(examples))
    for images, labels, count in evaluation_batches(examples, recipe.data, size, batch_size):
        start = time.perf_counter()
        row = {key: value.numpy()[:count] for key, value in measure(images, labels).items()}
        seconds.append(time.perf_counter() - start)
        if plain:
            hits = in_top_k(plain(images)["logits"], labels, 1)
            row["top1_without_tta"] = hits.numpy()[:count]
        rows.append(row)
        truth.append(labels[:count])
    about = {
        "recipe": recipe.name,
        "run": str(run.path),
        "split": split,
        "weights": weights,
        "skipped_images": list(skipped),
        "tta": tta,
    }
    found = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    result = about | _summary(found, np.concatenate(truth), net, recipe.target, split)
    # The first batch pays for tracing; where there is no other, there is nothing to tell.
    result |= {
        "throughput_images_per_s": _throughput(seconds[1:], batch_size),
        "batch_size": batch_size,
        "latency_ms": latency_ms(_one_image_call(answer, images[:1])),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    if plain:
        result["top1_without_tta"] = float(found["top1_without_tta"].mean())
    if robust_examples:
        from cnnbench.evaluation.robustness import robustness  # SciPy takes a while to import

        chosen = examples.take(slice(robust_examples))
        batches = evaluation_batches(chosen, recipe.data, size, batch_size)
        result["robust"] = robustness(lambda pixels: answer(pixels)["logits"], batches)
    kinds = (split, weights, tta, "robust" if robust_examples else "")
    usual = ("test", "best", recipe.evaluation.tta, "")
    kind = "".join(f"-{x}" for x, each in zip(kinds, usual, strict=True) if x != each)
    files.write_json(run.path / f"eval{kind}.json", result)
    return result


def _summary(
    found: dict[str, np.ndarray],
    labels: np.ndarray,
    net: Network,
    target: Target | None,
    split: str,
) -> dict[str, Any]:
    """Returns what eval.json says of the scores of all examples."""
    matrix = confusion(found["probabilities"].argmax(axis=1), labels, len(net.classes))
    top1 = float(found["top1"].mean())
    return {
        "examples": len(labels),
        "loss": float(found["loss"].mean(dtype=np.float64)),
        "top1": top1,
        "top5": float(found["top5"].mean()),
        "nll": float(found["nll"].mean(dtype=np.float64)),
        "ece": calibration_error(found["probabilities"], labels),
        "per_class": _per_class(net.classes, matrix),
        "confusion": matrix.tolist(),
        "params": count_params(net.model),
        "macs": count_macs(net.model),
        "target": _reached(target, top1) if split == "test" else None,
    }


def _answering(net: Network, tta: str) -> Callable[[Any], dict[str, Any]]:
    """Returns what gives the "logits" and "probabilities" of pixels under an augmentation."""

    @tf.function(autograph=False)
    def answer(images: Any) -> dict[str, Any]:
        logits = TTA[tta](lambda views: net(views)["logits"], images)
        return {"logits": logits, "probabilities": probabilities(logits, net.loss)}

    return answer


def _one_image_call(answer: Callable[[Any], Any], image: np.ndarray) -> Callable[[], Any]:
    tensor = tf.constant(image)
    return lambda: answer(tensor)["probabilities"].numpy()


def _throughput(seconds: list[float], batch_size: int) -> float | None:
    return round(batch_size / float(np.median(seconds)), 1) if seconds else None


def _reached(target: Target | None, top1: float) -> dict[str, Any] | None:
    if target is None:
        return None
    difference = top1 - target.top1
    reached = round(difference + target.tolerance, 9) >= 0  # 0.5006 - 0.001 is above 0.4996
    return target.model_dump() | {"reached": reached, "difference": difference}
