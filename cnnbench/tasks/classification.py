"""Classification: each image has one class of several."""

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
    calibration_error,
    confusion,
    first_in_top_k,
    in_top_k,
    per_class,
)
from cnnbench.tasks.task import Outputs, Row, Score, Task

# Classes beyond this number are in eval.json alone.
MAX_CLASSES_SHOWN = 20
# Probabilities below it count as it: the negative log-likelihood of an image is at most 69 nats.
LEAST_PROBABILITY = 1e-30
# Images on which the probabilities of a file are compared with those of its logits.
PROBABILITY_EXAMPLES = 32


@TASKS.register("classification")
class Classification(Task):
    """One class for each image.

    Targets are (batch,) int32 labels or, where images are mixed, (batch, classes) float32 shares.
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
        """Returns the number of classes that is known of the data set, or that the recipe says."""
        known = DATASETS.get(data.name).facts.get("classes") or getattr(data, "classes", None)
        if known is None and model is not None:
            known = MODELS.get(model.name).facts["native_classes"]
        return known

    def check_head_size(self, model: str, size: int) -> None:
        """Raises a UsageError for fewer than two classes."""
        if size < 2:
            raise UsageError(f"model {model!r} with {size} classes", allowed="at least 2")

    def check_data(self, data: Spec, dataset: Any) -> None:
        """Raises a DataError if there are not as many classes as the recipe says."""
        expected, found = getattr(data, "classes", None), len(dataset.classes)
        if expected and expected != found:
            raise DataError(f"data.classes is {expected}, but {dataset.name} has {found} classes")

    def stand_in_data(self, data: Spec, model: Spec | None, **options: Any) -> Spec:
        """Returns made-up data of as many classes as the recipe's have, if that is known."""
        classes = self.expected_head_size(data, model)
        return super().stand_in_data(data, model, classes=classes, **options)

    def mixable(self, targets: Any, head_size: int) -> Any:
        """Returns (batch, classes) float32 shares of the classes."""
        return tf.one_hot(targets, head_size)

    def losses(self, loss: Spec, answer: Any, targets: Any) -> Any:
        """Returns the loss of each image, (batch,) float32, in nats."""
        shares = targets if _is_mixed(targets) else tf.one_hot(targets, answer.shape[-1])
        return LOSSES.build(loss, answer, shares)

    def hits(self, answer: Any, targets: Any) -> Any:
        """Tells, (batch,) bool, whether the class with the largest share has the highest logit."""
        return in_top_k(answer, tf.argmax(targets, 1) if _is_mixed(targets) else targets, 1)

    def distillation_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """Returns temperature**2 * KL(teacher, student) of each image, (batch,) float32, in nats.

        Hinton et al. 2015, section 2: the gradients' size does not depend on the temperature.
        """
        soft = tf.nn.softmax(teacher / temperature)
        gap = tf.nn.log_softmax(teacher / temperature) - tf.nn.log_softmax(student / temperature)
        return temperature**2 * tf.reduce_sum(soft * gap, axis=-1)

    def keras_loss(self) -> tuple[Any, list[str]]:
        """Returns Keras's cross-entropy of logits, and its accuracy."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]

    def serve(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns (batch, classes) float32 "probabilities" and "logits"."""
        return {"probabilities": probabilities(answer, loss), "logits": answer}

    def keras_layers(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns "logits" and "probabilities", those by an activation layer."""
        function = LOSSES.get(loss).facts["probabilities"]
        shares = keras.layers.Activation(function, name="probabilities")(answer)
        return {"logits": answer, "probabilities": shares}

    def read(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns "logits", and "probabilities" if the file has both.

        Of a file with probabilities alone, the logits are their logarithms. An output of another
        name is taken for the one or the other by its values.
        """
        if "logits" in outputs:
            return dict(outputs)
        if "probabilities" in outputs:
            return {"logits": _logarithm(outputs["probabilities"])}
        (values,) = super().read(outputs).values()
        are_shares = (values >= 0).all() and np.allclose(values.sum(axis=-1), 1, atol=2e-2)
        return {"logits": _logarithm(values) if are_shares else values}

    def output_of_operation(self, operation: str) -> str:
        """Returns "probabilities" for the operations that make them of logits."""
        return "probabilities" if operation in ("SOFTMAX", "LOGISTIC") else "logits"

    def predictions(
        self, outputs: Mapping[str, np.ndarray], classes: Sequence[str], top: int
    ) -> list[dict[str, Any]]:
        """Returns for each image "top": {"class", "probability"} from the likeliest class down."""
        rows = []
        for shares in outputs["probabilities"]:
            order = np.argsort(-shares, kind="stable")[:top]
            likeliest = [{"class": classes[i], "probability": float(shares[i])} for i in order]
            rows.append({"top": likeliest})
        return rows

    def measures(self, loss: Spec, outputs: Outputs, targets: Any) -> dict[str, Any]:
        """Returns "loss", "nll", "top1", "top5" and "probabilities" of each image."""
        logits = outputs["logits"]
        shares = probabilities(logits, loss.name)
        own = tf.gather(shares, targets, batch_dims=1)
        return {
            "loss": self.losses(loss, logits, targets),
            "nll": -tf.math.log(tf.maximum(own, LEAST_PROBABILITY)),
            "top1": in_top_k(logits, targets, 1),
            "top5": in_top_k(logits, targets, min(5, logits.shape[-1])),
            "probabilities": shares,
        }

    def measures_of_file(
        self, loss: Spec, outputs: Mapping[str, np.ndarray], targets: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the measures of logits among which the first of equal ones wins, as on a device.

        Integers are often equal.
        """
        found = super().measures_of_file(loss, outputs, targets)
        logits = outputs["logits"]
        return found | {f"top{k}": first_in_top_k(logits, targets, k) for k in (1, 5)}

    def summary(
        self, measured: Mapping[str, np.ndarray], targets: np.ndarray, classes: Sequence[str]
    ) -> dict[str, Any]:
        """Returns accuracy, loss and calibration, and what was named for which class."""
        matrix = confusion(measured["probabilities"].argmax(axis=1), targets, len(classes))
        return {
            "loss": float(measured["loss"].mean(dtype=np.float64)),
            "top1": float(measured["top1"].mean()),
            "top5": float(measured["top5"].mean()),
            "nll": float(measured["nll"].mean(dtype=np.float64)),
            "ece": calibration_error(measured["probabilities"], targets),
            "per_class": per_class(classes, matrix),
            "confusion": matrix.tolist(),
        }

    def tolerance(self, precision: str) -> float:
        """Returns the share of images that may be named otherwise or, with integers, wrongly."""
        return agreement.tolerance(precision)

    def agreement(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        targets: np.ndarray,
        loss: str,
    ) -> dict[str, Any]:
        """Compares logits, the classes they name, and probabilities with those of the logits."""
        row = agreement.compare_logits(reference["logits"], outputs["logits"], targets)
        if "probabilities" in outputs:
            some = slice(PROBABILITY_EXAMPLES)
            expected = probabilities(outputs["logits"][some], loss).numpy()
            gap = float(np.abs(outputs["probabilities"][some] - expected).max())
            row["max_abs_probability_diff"] = gap if np.isfinite(gap) else None
        return row

    def passes(self, row: Mapping[str, Any], precision: str) -> bool:
        """Tells whether classes, logits and probabilities are within their bounds."""
        return agreement.passes(row, precision)

    def refusal(
        self, row: Mapping[str, Any], folder: Path, remedy: str | None = None
    ) -> VerificationError:
        """Returns the error for a file that names other classes or has other logits."""
        return agreement.refusal(row, folder, remedy)

    def problems(self, recipe: Any) -> Iterator[tuple[str, str, str | None]]:
        """Yields a wrong number of classes, and mixed images for a loss of hard labels."""
        known = DATASETS.get(recipe.data.name).facts.get("classes")
        if known and recipe.data.classes and known != recipe.data.classes:
            what = f"{recipe.data.classes}, but {recipe.data.name} has {known} classes"
            yield "data.classes", what, None
        if not LOSSES.get(recipe.loss.name).facts.get("hard_labels"):
            return
        for i, spec in enumerate(recipe.augment):
            if kind_of(spec) == "mix":
                loss = recipe.loss.name
                what = f"{spec.name} makes soft labels, which loss {loss} cannot take"
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
        shares = ["" if row["top1"] is None else f"{row['top1']:.4f}" for row in rows]
        classes = [
            (row["class"], row["examples"], share) for row, share in zip(rows, shares, strict=True)
        ]
        named = [
            (f"{i} {row['class']}", *counts)
            for i, (row, counts) in enumerate(zip(rows, result["confusion"], strict=True))
        ]
        numbers = [str(i) for i in range(len(rows))]
        return [
            (("class", "examples", "top-1"), classes),
            (("true \\ predicted", *numbers), named),
        ]

    def verification_cells(self, row: Mapping[str, Any]) -> list[Row]:
        """Returns the accuracy of the file and of the network, and how far they are apart."""
        difference = row["max_abs_logit_diff"]
        return [
            ("top-1", f"{row['top1']:.4f}"),
            ("Keras top-1", f"{row['reference_top1']:.4f}"),
            ("agreement", f"{row['agreement']:.2%} of {row['examples']}"),
            ("logit diff", "NaN" if difference is None else f"{difference:.2g}"),
        ]

    def prediction_cells(self, row: Mapping[str, Any]) -> list[list[Row]]:
        """Returns a line for each of the likeliest classes."""
        return [
            [("class", likely["class"]), ("probability", f"{likely['probability']:.4f}")]
            for likely in row["top"]
        ]


def probabilities(logits: Any, loss: str) -> Any:
    """Returns the (batch, classes) probabilities that logits trained with a loss stand for."""
    return getattr(tf.nn, LOSSES.get(loss).facts["probabilities"])(logits)


def _is_mixed(targets: Any) -> bool:
    """Tells shares of classes from labels."""
    return bool(tf.as_dtype(targets.dtype).is_floating)


def _logarithm(shares: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(shares, LEAST_PROBABILITY))
