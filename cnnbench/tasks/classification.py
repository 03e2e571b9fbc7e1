"""Single-label image classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.backend.lazy import keras, tf
from cnnbench.errors import DataError, UsageError, VerificationError
from cnnbench.registry.kinds import DATASETS, LOSSES, MODELS, TASKS, kind_of
from cnnbench.registry.registry import Spec
from cnnbench.tasks import agreement
from cnnbench.tasks.metrics import (
    Confusion,
    calibration_error,
    first_in_top_k,
    in_top_k,
    per_class,
)
from cnnbench.tasks.photographs import ClassCheck
from cnnbench.tasks.task import Outputs, Row, Score, Task

# With more classes, the per-class tables are in eval.json only.
MAX_CLASSES_SHOWN = 20
# With more classes, eval.json has the most frequent mistakes instead of the confusion matrix,
# which has a number for each pair of classes. It takes 0.3 MB for so many classes.
MAX_CLASSES_IN_MATRIX = 200
# Mistakes in eval.json, which take 40 bytes each.
MAX_MISTAKES = 30_000
# The least normal float32. The logarithm of a smaller probability in a file is unknown.
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
# Images on which the probabilities of a file are compared with those of its logits.
PROBABILITY_EXAMPLES = 32


@TASKS.register("classification")
class Classification(Task):
    """Single-label classification.

    Targets are (batch,) int32 labels or, for mixed images, (batch, classes) float32 class weights.
    Answers are (batch, classes) float32 logits.
    """

    name = "classification"
    score = Score("top1", "top-1")
    default_loss = "cross_entropy"
    stand_in = "synthetic"
    primary = "logits"

    def head_size(self, classes: Sequence[str]) -> int:
        """Returns the number of classes."""
        return len(classes)

    def expected_head_size(self, data: Spec, model: Spec | None = None) -> int | None:
        """Returns the number of classes, from the data set's facts, the recipe or the model."""
        known = DATASETS.get(data.name).facts.get("classes") or getattr(data, "classes", None)
        if known is None and model is not None:
            known = MODELS.get(model.name).facts["native_classes"]
        return known

    def check_head_size(self, model: str, size: int) -> None:
        """Raises a UsageError for fewer than two classes."""
        if size < 2:
            raise UsageError(f"model {model!r} with {size} classes", allowed="at least 2")

    def check_data(self, data: Spec, dataset: Any) -> None:
        """Raises a DataError if the number of classes differs from the recipe's."""
        expected, found = getattr(data, "classes", None), len(dataset.classes)
        if expected and expected != found:
            raise DataError(f"data.classes is {expected}, but {dataset.name} has {found} classes")

    def stand_in_data(self, data: Spec, model: Spec | None, **options: Any) -> Spec:
        """Returns synthetic data with the same number of classes, if that is known."""
        classes = self.expected_head_size(data, model)
        return super().stand_in_data(data, model, classes=classes, **options)

    def mixable(self, targets: Any, head_size: int) -> Any:
        """Returns one-hot (batch, classes) float32 class weights."""
        return tf.one_hot(targets, head_size)

    def losses(self, loss: Spec, answer: Any, targets: Any) -> Any:
        """Returns the loss of each image, (batch,) float32, in nats."""
        weights = targets if _is_mixed(targets) else tf.one_hot(targets, answer.shape[-1])
        return LOSSES.build(loss, answer, weights)

    def hits(self, answer: Any, targets: Any) -> Any:
        """Returns, as (batch,) bool, whether the class of largest weight has the highest logit."""
        return in_top_k(answer, tf.argmax(targets, 1) if _is_mixed(targets) else targets, 1)

    def distillation_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """Returns temperature**2 * KL(teacher, student) of each image, (batch,) float32, in nats.

        The factor keeps the scale of the gradients independent of the temperature (Hinton et al.
        2015, section 2).
        """
        soft = tf.nn.softmax(teacher / temperature)
        gap = tf.nn.log_softmax(teacher / temperature) - tf.nn.log_softmax(student / temperature)
        return temperature**2 * tf.reduce_sum(soft * gap, axis=-1)

    def keras_loss(self) -> tuple[Any, list[str]]:
        """Returns Keras's cross-entropy on logits, and the accuracy metric."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]

    def serve(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns (batch, classes) float32 "probabilities" and "logits"."""
        return {"probabilities": probabilities(answer, loss), "logits": answer}

    def keras_layers(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns "logits", and "probabilities" computed by an activation layer."""
        function = LOSSES.get(loss).facts["probabilities"]
        probabilities = keras.layers.Activation(function, name="probabilities")(answer)
        return {"logits": answer, "probabilities": probabilities}

    def read(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns "logits", and "probabilities" if the file has both.

        If the file only has probabilities, their logarithms are the logits. A single output with
        another name is identified by its values.
        """
        if "logits" in outputs:
            return dict(outputs)
        if "probabilities" in outputs:
            return {"logits": _logarithm(outputs["probabilities"])}
        (values,) = super().read(outputs).values()
        are_probabilities = (values >= 0).all() and np.allclose(values.sum(axis=-1), 1, atol=2e-2)
        return {"logits": _logarithm(values) if are_probabilities else values}

    def output_of_operation(self, operation: str) -> str:
        """Returns "probabilities" for a softmax or sigmoid, else "logits"."""
        return "probabilities" if operation in ("SOFTMAX", "LOGISTIC") else "logits"

    def predictions(
        self, outputs: Mapping[str, np.ndarray], classes: Sequence[str], top: int
    ) -> list[dict[str, Any]]:
        """Returns for each image "top": the most likely classes and probabilities, best first."""
        rows = []
        for row in outputs["probabilities"]:
            order = np.argsort(-row, kind="stable")[:top]
            rows.append(
                {"top": [{"class": classes[i], "probability": float(row[i])} for i in order]}
            )
        return rows

    def measures(self, loss: Spec, outputs: Outputs, targets: Any) -> dict[str, Any]:
        """Returns "loss", "nll", "top1", "top5", "predicted" and "confidence" of each image.

        Nothing of an image grows with the number of classes: "predicted" is its most likely class,
        and "confidence" that class's probability.
        """
        logits = outputs["logits"]
        likely = probabilities(logits, loss.name)
        return {
            "loss": self.losses(loss, logits, targets),
            "nll": -tf.gather(log_likelihoods(logits, loss.name), targets, batch_dims=1),
            "top1": in_top_k(logits, targets, 1),
            "top5": in_top_k(logits, targets, min(5, logits.shape[-1])),
            "predicted": tf.argmax(likely, axis=-1, output_type=tf.int32),
            "confidence": tf.reduce_max(likely, axis=-1),
        }

    def measures_of_file(
        self, loss: Spec, outputs: Mapping[str, np.ndarray], targets: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the measures, where the first of equal logits ranks highest, as on a device.

        Quantized logits are often equal.
        """
        found = super().measures_of_file(loss, outputs, targets)
        logits = outputs["logits"]
        return found | {f"top{k}": first_in_top_k(logits, targets, k) for k in (1, 5)}

    def summary(
        self, measured: Mapping[str, np.ndarray], targets: np.ndarray, classes: Sequence[str]
    ) -> dict[str, Any]:
        """Returns accuracy, loss, calibration, per-class accuracy and the confusion matrix.

        With more than MAX_CLASSES_IN_MATRIX classes, "confusion" is an object instead: "classes",
        the "mistakes", and the "other_mistakes" beyond MAX_MISTAKES; see `Confusion.mistakes`.
        """
        predicted = measured["predicted"]
        found = Confusion(predicted, targets, len(classes))
        return {
            "loss": float(measured["loss"].mean(dtype=np.float64)),
            "top1": float(measured["top1"].mean()),
            "top5": float(measured["top5"].mean()),
            "nll": float(measured["nll"].mean(dtype=np.float64)),
            "ece": calibration_error(measured["confidence"], predicted == targets),
            "per_class": per_class(classes, found),
            "confusion": _written(found),
        }

    def photograph_check(self, classes: Sequence[str], others: Mapping[str, str]) -> ClassCheck:
        """Returns the check of the classes that the photographs' paths name."""
        return ClassCheck(classes, others)

    def tolerance(self, precision: str) -> float:
        """Returns the allowed fraction of changed classes (float) or drop in top-1 (integer)."""
        return agreement.tolerance(precision)

    def agreement(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        targets: np.ndarray,
        loss: str,
    ) -> dict[str, Any]:
        """Compares logits, predicted classes and calibration, and checks the probabilities."""
        ours, theirs = reference["logits"], outputs["logits"]
        row = agreement.compare_logits(ours, theirs, targets)
        row |= agreement.compare_calibration(
            _calibration(ours, targets, loss), _calibration(theirs, targets, loss), targets
        )
        if "probabilities" in outputs:
            first = slice(PROBABILITY_EXAMPLES)
            expected = probabilities(outputs["logits"][first], loss).numpy()
            gap = float(np.abs(outputs["probabilities"][first] - expected).max())
            row["max_abs_probability_diff"] = gap if np.isfinite(gap) else None
        return row

    def passes(self, row: Mapping[str, Any], precision: str) -> bool:
        """Returns whether classes, logits and probabilities are within their bounds."""
        return agreement.passes(row, precision)

    def refusal(
        self, row: Mapping[str, Any], folder: Path, remedy: str | None = None
    ) -> VerificationError:
        """Returns the error for a file whose classes, logits or probabilities are off."""
        return agreement.refusal(row, folder, remedy)

    def problems(self, recipe: Any) -> Iterator[tuple[str, str, str | None]]:
        """Yields a wrong number of classes, and mixing with a loss that needs hard labels."""
        known = DATASETS.get(recipe.data.name).facts.get("classes")
        if known and recipe.data.classes and known != recipe.data.classes:
            what = f"{recipe.data.classes}, but {recipe.data.name} has {known} classes"
            yield "data.classes", what, None
        if not LOSSES.get(recipe.loss.name).facts.get("hard_labels"):
            return
        for i, spec in enumerate(recipe.augment):
            if kind_of(spec) == "mix":
                loss = recipe.loss.name
                what = f"{spec.name} makes soft labels, which loss {loss} does not support"
                soft = [n for n in LOSSES.names() if not LOSSES.get(n).facts.get("hard_labels")]
                yield f"augment.{i}", what, f"use loss {' or '.join(soft)}"

    def evaluation_rows(self, result: Mapping[str, Any]) -> list[Row]:
        """Returns accuracy, with and without test-time augmentation, loss and calibration."""
        augmented = ""
        if result["tta"] != "none":
            augmented = f" with {result['tta']}, {result['top1_without_tta']:.4f} without"
        return [
            ("top-1", f"{result['top1']:.4f}{augmented}"),
            ("top-5", f"{result['top5']:.4f}"),
            ("loss", f"{result['loss']:.4f}"),
            ("negative log-likelihood", f"{result['nll']:.4f}"),
            ("calibration error", f"{result['ece']:.4f}"),
        ]

    def evaluation_tables(
        self, result: Mapping[str, Any]
    ) -> list[tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """Returns the accuracy of each class and the confusion matrix, if there are few classes."""
        rows = result["per_class"]
        if len(rows) > MAX_CLASSES_SHOWN:
            return []
        classes = [
            (row["class"], row["examples"], "" if row["top1"] is None else f"{row['top1']:.4f}")
            for row in rows
        ]
        confusion_rows = [
            (f"{i} {row['class']}", *counts)
            for i, (row, counts) in enumerate(zip(rows, result["confusion"], strict=True))
        ]
        numbers = [str(i) for i in range(len(rows))]
        return [
            (("class", "examples", "top-1"), classes),
            (("true \\ predicted", *numbers), confusion_rows),
        ]

    def photograph_rows(self, result: Mapping[str, Any]) -> list[Row]:
        """Returns the accuracy on the photographs."""
        return [("top-1", f"{result['top1']:.1%}"), ("top-5", f"{result['top5']:.1%}")]

    def verification_cells(self, row: Mapping[str, Any]) -> list[Row]:
        """Returns the accuracy of the file and of the network, and how much they differ."""
        difference = row["max_abs_logit_diff"]
        return [
            ("top-1", f"{row['top1']:.4f}"),
            ("Keras top-1", f"{row['reference_top1']:.4f}"),
            ("agreement", f"{row['agreement']:.2%} of {row['examples']}"),
            ("logit diff", "NaN" if difference is None else f"{difference:.2g}"),
        ]

    def prediction_cells(self, row: Mapping[str, Any]) -> list[list[Row]]:
        """Returns one line for each of the most likely classes."""
        return [
            [("class", found["class"]), ("probability", f"{found['probability']:.4f}")]
            for found in row["top"]
        ]


def probabilities(logits: Any, loss: str) -> Any:
    """Returns the (batch, classes) probabilities of logits, given the loss of the training."""
    return getattr(tf.nn, LOSSES.get(loss).facts["probabilities"])(logits)


def log_likelihoods(logits: Any, loss: str) -> Any:
    """Returns (batch, classes) logarithms of probabilities that sum to 1 over the classes.

    Sigmoids, which do not sum to 1, are divided by their sum: the likelihood of a label is that of
    a distribution over all classes.

    Args:
        logits: (batch, classes) float32.
        loss: name of the training loss.
    """
    if LOSSES.get(loss).facts["probabilities"] == "sigmoid":
        logits = tf.math.log_sigmoid(logits)
    return tf.nn.log_softmax(logits)


def _written(found: Confusion) -> list[list[int]] | dict[str, Any]:
    """Returns the confusion matrix as in eval.json."""
    if found.classes <= MAX_CLASSES_IN_MATRIX:
        matrix: list[list[int]] = found.matrix().tolist()
        return matrix
    mistakes, others = found.mistakes(MAX_MISTAKES)
    return {"classes": found.classes, "mistakes": mistakes, "other_mistakes": others}


def _calibration(logits: np.ndarray, labels: np.ndarray, loss: str) -> tuple[Any, Any]:
    """Returns the negative log-likelihood of each label, and the probabilities, as arrays."""
    by_class = log_likelihoods(logits, loss).numpy()
    return -by_class[range(len(labels)), labels], probabilities(logits, loss).numpy()


def _is_mixed(targets: Any) -> bool:
    """Returns whether targets are class weights, not labels."""
    return bool(tf.as_dtype(targets.dtype).is_floating)


def _logarithm(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, LEAST_PROBABILITY))
