"""Evaluation of a trained network: score, loss, calibration, speed and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.data.examples import Examples
from cnnbench.data.open import Access
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import evaluation_examples
from cnnbench.errors import UsageError
from cnnbench.evaluation.tta import TTA
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.runs import network
from cnnbench.runs.network import Network
from cnnbench.runs.run import Run
from cnnbench.system import files
from cnnbench.system.measure import Latency, latency_ms, peak_memory_mb
from cnnbench.tasks.results import TaskScore, TaskSummary


class TargetReached(TaskScore):
    """A recipe's target, with the task's score that it asks for.

    Attributes:
        tolerance: by how much the score may be below, in [0, 1).
        source: where the target comes from.
        reached: whether the score is the target's, within the tolerance.
        difference: the score less the target's.
    """

    tolerance: float
    source: str
    reached: bool
    difference: float


class Robustness(TypedDict):
    """The score under corruptions.

    Attributes:
        examples: number of images that were corrupted.
        corruptions: for each corruption, the score in [0, 1] at the severities 1 to 5.
        mean_corruption_accuracy: mean of these.
        mean_corruption_error: 1 less the mean.
        notes: differences from published benchmarks.
    """

    examples: int
    corruptions: dict[str, list[float]]
    mean_corruption_accuracy: float
    mean_corruption_error: float
    notes: list[str]


class Evaluation(TaskSummary):
    """The content of eval.json, with the keys of the run's task.

    Attributes:
        recipe: name of the recipe.
        run: path of the run.
        split: "test" or "validation".
        weights: "best" or "last"; not of an artifact.
        artifact: path of the artifact, if one was evaluated.
        format: its format.
        skipped_images: damaged images that were left out.
        tta: test-time augmentation; "none" without.
        examples: number of images.
        params: number of trainable parameters.
        macs: multiply-accumulates of one image.
        target: the recipe's target; None without one, or on another split than "test".
        throughput_images_per_s: of batches; None if there were too few to tell, or an artifact's
            runtime failed on them.
        batch_size: images in these batches; None if an artifact's runtime failed on them.
        latency_ms: of one image.
        peak_memory_mb: of the process, in MB of 2**20 bytes.
        robust: the score under corruptions, if it was measured.
    """

    recipe: str
    run: str
    split: str
    weights: NotRequired[str]
    artifact: NotRequired[str]
    format: NotRequired[str]
    skipped_images: list[str]
    tta: str
    examples: int
    params: int
    macs: int
    target: TargetReached | None
    throughput_images_per_s: float | None
    batch_size: int | None
    latency_ms: Latency
    peak_memory_mb: float
    robust: NotRequired[Robustness]


@session.isolated()
def evaluate(
    run: Run,
    *,
    split: str = "test",
    weights: str = "best",
    tta: str | None = None,
    robust_examples: int | None = None,
    access: Access | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluates a run's network on a split and writes eval.json.

    With another split, other weights, another test-time augmentation than the recipe's, or with
    robustness, the file is eval-validation.json, eval-last.json, eval-flip.json, eval-robust.json,
    and so on.

    Args:
        run: a run with weights.
        split: "test" or "validation".
        weights: "best" by validation, or "last".
        tta: test-time augmentation, a name in TTA; None: the recipe's.
        robust_examples: maximum number of examples to measure robustness on; None: not measured.
        access: where data sets are stored; None: where the training found them.
        tell: called with a line if the file may not be written; the result is returned all the
            same.

    Returns:
        The content of the file.

    Raises:
        RunError: the run has no weights, or the data differs from that of the training.
        DataError: the data is missing or an image is damaged.
        UsageError: the run has no validation split, or its task does not support test-time
            augmentation.

    Example:
        >>> import cnnbench
        >>> run = cnnbench.open_run("runs/digits")
        >>> result = cnnbench.evaluate(run)
        >>> result["examples"], run.recipe.task.score.of(result) > 0.9
        (360, True)
    """
    recipe, task = run.recipe, run.recipe.task
    tta = tta or recipe.evaluation.tta
    if tta != "none" and not task.averages_answers:
        raise UsageError(f"test-time augmentation {tta} for {task.name}", allowed="must be none")
    net = network.restore(run, weights=weights)
    dataset = network.open_data(run, access or Access())
    examples, skipped = evaluation_examples(dataset, recipe.data, split)
    evaluator = _Evaluator(run, net, tta)
    found = evaluator.measure(examples)
    result: dict[str, Any] = {
        "recipe": recipe.name,
        "run": str(run.path),
        "split": split,
        "weights": weights,
        "skipped_images": list(skipped),
        "tta": tta,
    }
    result |= summary(run, net, found.measures, found.targets, split) | found.speed
    if tta != "none":
        result[f"{task.score.key}_without_tta"] = found.score_without_tta
    if robust_examples:
        from cnnbench.evaluation.robustness import robustness  # SciPy is slow to import

        subset = examples.take(slice(robust_examples))
        batches = evaluator.batches(subset, len(examples))
        result["robust"] = robustness(evaluator.hits, batches)
    file = _file(run, split, weights, tta, bool(robust_examples))
    if problem := files.keep_json(file, result):
        tell(problem)
    return cast("Evaluation", result)  # the task's part has whatever keys the task gives it


def summary(
    run: Run, net: Network, measures: Mapping[str, np.ndarray], targets: np.ndarray, split: str
) -> dict[str, Any]:
    """Returns the part of eval.json on the metrics, the network's size and the target.

    Args:
        run: the run whose recipe has the target.
        net: the network that was measured.
        measures: results of `Task.measures` for all examples.
        targets: targets of all examples.
        split: "test" or "validation"; only "test" is compared with the recipe's target.
    """
    task = net.task
    found = {"examples": len(targets)} | task.summary(measures, targets, net.classes)
    found |= {"params": count_params(net.model), "macs": count_macs(net.model)}
    target = run.recipe.target
    return found | {
        "target": _reached(target, task.score.of_target(target), found[task.score.key])
        if target is not None and split == "test"
        else None
    }


class _Measured:
    """Measurements on the examples of a split."""

    def __init__(self) -> None:
        self.measures: dict[str, np.ndarray] = {}
        self.targets: np.ndarray = np.empty(0)
        self.score_without_tta: float | None = None
        self.speed: dict[str, Any] = {}


class _Evaluator:
    """A compiled network with test-time augmentation."""

    def __init__(self, run: Run, net: Network, tta: str):
        self._data, self._loss, self._task = run.recipe.data, run.recipe.loss, net.task
        self._size = net.pixel_shape[:2]
        self._answer = tf.function(lambda images: TTA[tta](net.answer, images), autograph=False)
        self._plain = tf.function(net.answer, autograph=False) if tta != "none" else None
        self._serve = lambda answer: net.task.serve(answer, net.loss)

    def batches(self, examples: Examples, max_size: int) -> Any:
        """Returns evaluation batches of the recipe's size, but at most `max_size` examples."""
        size = min(self._data.batch_size, max_size)
        return evaluation_batches(examples, self._data, self._size, size)

    def hits(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the score of each image, (batch,)."""
        return self._task.hits(self._answer(images), targets).numpy()

    def measure(self, examples: Examples) -> _Measured:
        """Measures all examples."""

        @tf.function(autograph=False)
        def compute(images: Any, targets: Any) -> dict[str, Any]:
            outputs = self._serve(self._answer(images))
            return self._task.measures(self._loss, outputs, targets)

        rows, truth, seconds, plain_hits = [], [], [], []
        for images, targets, count in self.batches(examples, len(examples)):
            start = time.perf_counter()
            row = {key: each.numpy()[:count] for key, each in compute(images, targets).items()}
            seconds.append(time.perf_counter() - start)
            if self._plain is not None:
                hits = self._task.hits(self._plain(images), targets)
                plain_hits.append(hits.numpy()[:count])
            rows.append(row)
            truth.append(targets[:count])
        found = _Measured()
        found.measures = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        found.targets = np.concatenate(truth)
        if plain_hits:
            found.score_without_tta = float(np.concatenate(plain_hits).mean())
        batch_size = min(self._data.batch_size, len(examples))
        # The first batch includes tracing; if there is no other, the throughput is unknown.
        found.speed = {
            "throughput_images_per_s": _throughput(seconds[1:], batch_size),
            "batch_size": batch_size,
            "latency_ms": latency_ms(self._call_on(images[:1])),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }
        return found

    def _call_on(self, image: np.ndarray) -> Callable[[], Any]:
        tensor = tf.constant(image)
        served = tf.function(lambda images: self._serve(self._answer(images)), autograph=False)
        return lambda: [each.numpy() for each in served(tensor).values()]


def _throughput(seconds: list[float], batch_size: int) -> float | None:
    return round(batch_size / float(np.median(seconds)), 1) if seconds else None


def _file(run: Run, split: str, weights: str, tta: str, robust: bool) -> Path:
    """Returns the path of eval.json; its name has every choice that is not the default."""
    parts = ["eval"]
    if split != "test":
        parts.append(split)
    if weights != "best":
        parts.append(weights)
    if tta != run.recipe.evaluation.tta:
        parts.append(tta)
    if robust:
        parts.append("robust")
    return run.path / f"{'-'.join(parts)}.json"


def _reached(target: Any, wanted: float, score: float) -> dict[str, Any]:
    difference = score - wanted
    reached = round(difference + target.tolerance, 9) >= 0  # 0.5006 - 0.001 is above 0.4996
    return target.model_dump() | {"reached": reached, "difference": difference}
