"""Evaluation: how right a trained network is, how sure, how fast, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cnnbench import files, network
from cnnbench.data.datasets import Access
from cnnbench.data.pipeline import evaluation_batches, evaluation_examples
from cnnbench.lazy import tf
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.network import Network
from cnnbench.parts import LOSSES
from cnnbench.recipe import Target
from cnnbench.run import Run
from cnnbench.tasks.classification import calibration_error, confusion, in_top_k, probabilities
from cnnbench.tta import TTA
from cnnbench.workers import peak_memory_mb

LATENCY_CALLS = 50


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

    Of another split or other weights, the file is eval-validation.json, eval-last.json, ….

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
        out = answer(images)
        hot = tf.one_hot(labels, len(net.classes))
        own = tf.gather(out["probabilities"], labels, batch_dims=1)
        return {
            "loss": LOSSES.build(recipe.loss, out["logits"], hot),
            "nll": -tf.math.log(tf.maximum(own, 1e-30)),
            "top1": in_top_k(out["logits"], labels, 1),
            "top5": in_top_k(out["logits"], labels, min(5, len(net.classes))),
            "probabilities": out["probabilities"],
        }

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
    found = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    labels = np.concatenate(truth)
    matrix = confusion(found["probabilities"].argmax(axis=1), labels, len(net.classes))
    top1 = float(found["top1"].mean())
    result = {
        "recipe": recipe.name,
        "run": str(run.path),
        "split": split,
        "weights": weights,
        "examples": len(labels),
        "skipped_images": list(skipped),
        "tta": tta,
        "loss": float(found["loss"].mean(dtype=np.float64)),
        "top1": top1,
        "top5": float(found["top5"].mean()),
        "nll": float(found["nll"].mean(dtype=np.float64)),
        "ece": calibration_error(found["probabilities"], labels),
        "per_class": _per_class(net.classes, matrix),
        "confusion": matrix.tolist(),
        "params": count_params(net.model),
        "macs": count_macs(net.model),
        # The first batch pays for tracing; where there is no other, there is nothing to tell.
        "throughput_images_per_s": _throughput(seconds[1:], batch_size),
        "batch_size": batch_size,
        "latency_ms": latency_ms(_one_image_call(answer, images[:1])),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "target": _reached(recipe.target, top1) if split == "test" else None,
    }
    if plain:
        result["top1_without_tta"] = float(found["top1_without_tta"].mean())
    if robust_examples:
        from cnnbench.robustness import robustness  # SciPy takes a while to import

        chosen = examples.take(slice(robust_examples))
        batches = evaluation_batches(chosen, recipe.data, size, batch_size)
        result["robust"] = robustness(lambda pixels: answer(pixels)["logits"], batches)
    kind = "".join(f"-{x}" for x in (split, weights) if x not in ("test", "best"))
    files.write_json(run.path / f"eval{kind}.json", result)
    return result


def latency_ms(call: Callable[[], Any], calls: int = LATENCY_CALLS) -> dict[str, float]:
    """Returns the median and the 95th percentile, in ms, of so many calls after two unmeasured."""
    times = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(times[2:], (50, 95))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


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


def _per_class(classes: tuple[str, ...], matrix: np.ndarray) -> list[dict[str, Any]]:
    """Returns each class's name, examples, and share of them that is right (None without any)."""
    counts = matrix.sum(axis=1).tolist()
    return [
        {"class": name, "examples": count, "top1": float(right) / count if count else None}
        for name, count, right in zip(classes, counts, matrix.diagonal(), strict=True)
    ]


def _reached(target: Target | None, top1: float) -> dict[str, Any] | None:
    if target is None:
        return None
    difference = top1 - target.top1
    reached = round(difference + target.tolerance, 9) >= 0  # 0.5006 - 0.001 is above 0.4996
    return target.model_dump() | {"reached": reached, "difference": difference}
