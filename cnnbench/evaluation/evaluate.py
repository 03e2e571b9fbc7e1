"""Evaluation: how right a trained network is, how sure, how fast, and what it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench import files, network
from cnnbench.artifacts import files_of, format_of, require
from cnnbench.artifacts.process import Artifact
from cnnbench.data.datasets import Access
from cnnbench.data.pipeline import evaluation_batches, evaluation_examples
from cnnbench.errors import UsageError, VerificationError
from cnnbench.lazy import tf
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.network import Network
from cnnbench.parts import LOSSES
from cnnbench.recipe import Recipe, Target
from cnnbench.run import Run
from cnnbench.tasks.classification import (
    calibration_error,
    confusion,
    first_in_top_k,
    in_top_k,
    probabilities,
)
from cnnbench.tta import TTA
from cnnbench.workers import WorkerError, latency_ms, peak_memory_mb


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
        from cnnbench.robustness import robustness  # SciPy takes a while to import

        chosen = examples.take(slice(robust_examples))
        batches = evaluation_batches(chosen, recipe.data, size, batch_size)
        result["robust"] = robustness(lambda pixels: answer(pixels)["logits"], batches)
    kinds = (split, weights, tta, "robust" if robust_examples else "")
    usual = ("test", "best", recipe.evaluation.tta, "")
    kind = "".join(f"-{x}" for x, each in zip(kinds, usual, strict=True) if x != each)
    files.write_json(run.path / f"eval{kind}.json", result)
    return result


def evaluate_artifact(
    run: Run,
    artifact: Path,
    *,
    split: str = "test",
    trust: bool = False,
    access: Access | None = None,
) -> dict[str, Any]:
    """Measures an artifact on a run's data, in a process of its own; writes eval.json beside it.

    Loss, probabilities and what is made of them are computed from its logits; of equal ones, the
    first goes first.

    Args:
        run: whose data, recipe and preprocessing.
        artifact: a file or a folder.
        split: "test" or "validation".
        trust: whether to open one that this run did not write.
        access: where data sets lie; None: where the training found them.

    Returns:
        What the file says; its keys are those of `evaluate`, "artifact" in place of "weights".

    Raises:
        UsageError: it is no artifact, cannot be run, or cnnbench did not write it, or did when the
            run had other weights.
        VerificationError: a logit of it is not finite.
        RunError, DataError: as for `evaluate`.
    """
    form, file = format_of(artifact)
    require(form)
    if not trust:
        must_be_written_by(run, file)
    net = network.restore(run)
    dataset = network.open_data(run, access or Access())
    examples, skipped = evaluation_examples(dataset, run.recipe.data, split)
    batch_size = min(run.recipe.data.batch_size, len(examples))
    size = net.pixel_shape[:2]
    rows, truth = [], []
    try:
        with Artifact(form, file) as opened:
            speed: dict[str, Any] = {}
            for images, labels, count in evaluation_batches(
                examples, run.recipe.data, size, batch_size
            ):
                images, labels = images[:count], labels[:count]
                inputs = images if opened.takes_pixels else net.preprocess(images).numpy()
                speed = speed or opened.speed(inputs)
                logits = opened.logits(inputs)
                if logits.shape != (count, len(net.classes)):
                    raise UsageError(
                        f"its outputs are {logits.shape} for {count} images",
                        where=str(artifact),
                        allowed=f"{len(net.classes)} classes, as the run has",
                    )
                if not np.isfinite(logits).all():
                    raise VerificationError("it answers NaN or infinity", where=str(artifact))
                row = {k: v.numpy() for k, v in _scores(logits, labels, run.recipe).items()}
                row |= {f"top{k}": first_in_top_k(logits, labels, k) for k in (1, 5)}
                rows.append(row)
                truth.append(labels)
            fastest = opened.best_batch(inputs) or {"images_per_s": None, "batch_size": None}
    except WorkerError as error:
        raise UsageError(f"cannot be run: {error}", where=str(artifact)) from None
    about = {
        "recipe": run.recipe.name,
        "run": str(run.path),
        "artifact": str(artifact),
        "format": form,
        "split": split,
        "skipped_images": list(skipped),
        "tta": "none",
    }
    found = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    result = about | _summary(found, np.concatenate(truth), net, run.recipe.target, split) | speed
    result["throughput_images_per_s"] = fastest["images_per_s"]
    result["batch_size"] = fastest["batch_size"]
    folder = file if file.is_dir() else file.parent
    kind = "" if split == "test" else f"-{split}"
    if folder.resolve() == run.path.resolve():  # whose own eval.json lies there
        kind = f"-{file.name}{kind}"
    files.write_json(folder / f"eval{kind}.json", result)
    return result


def must_be_written_by(run: Run, artifact: Path) -> None:
    """Refuses an artifact that does not lie in a run as `export` put it there.

    Args:
        run: the run.
        artifact: what its run-time opens.

    Raises:
        UsageError: it lies elsewhere, metadata.json beside it has not the SHA-256 of its files, or
            the run has other weights by now.
    """
    folder = artifact if artifact.is_dir() else artifact.parent
    try:
        about = dict(json.loads((folder / "metadata.json").read_text()))
        written = dict(about["files"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        about, written = {}, {}
    is_inside = folder.resolve().is_relative_to(run.path.resolve())
    if not (is_inside and written) or written != {
        str(path.relative_to(folder)): files.sha256(path) for path in files_of(folder)
    }:
        raise UsageError(
            "cnnbench did not write this file into the run; to open an artifact is to run the "
            "program in it",
            where=str(artifact),
            allowed="--trust-model opens it if you trust who made it",
        )
    if about.get("weights_sha256") != run.weights_sha256():
        raise UsageError(
            "the run has other weights than when this was exported",
            where=str(artifact),
            allowed="cnnbench export writes it anew",
        )


def _scores(logits: Any, labels: Any, recipe: Recipe) -> dict[str, Any]:
    """Returns what each example scores, of (batch, classes) logits and (batch,) labels."""
    classes = logits.shape[-1]
    shares = probabilities(logits, recipe.loss.name)
    own = tf.gather(shares, labels, batch_dims=1)
    return {
        "loss": LOSSES.build(recipe.loss, logits, tf.one_hot(labels, classes)),
        "nll": -tf.math.log(tf.maximum(own, 1e-30)),
        "top1": in_top_k(logits, labels, 1),
        "top5": in_top_k(logits, labels, min(5, classes)),
        "probabilities": shares,
    }


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
