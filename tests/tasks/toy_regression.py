"""A toy task in one file: the regression of one number, with its network, data and loss.

It shows that a task is a thing of its own: nothing of the package is edited for it.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from cnnbench.backend.lazy import keras, tf
from cnnbench.data.examples import ArraySource, Dataset
from cnnbench.errors import VerificationError
from cnnbench.models.register import add_model
from cnnbench.registry.kinds import DATASETS, LOSSES, TASKS
from cnnbench.tasks.photographs import PhotographCheck
from cnnbench.tasks.task import Score, Task


class BrightnessCheck(PhotographCheck):
    """The brightness is in the file's name, as of 0.5_photo.png."""

    naming = "begin their names with the brightness and _"

    def label(self, path):
        number, found, _ = path.stem.partition("_")
        return float(number) if found else None

    def summary(self, labels, predictions, folder):
        gaps = [abs(label - row["value"]) for label, row in zip(labels, predictions, strict=True)]
        return {"closeness": 1 - max(gaps)}

    def refusal(self, labels, predictions, run):
        if self.summary(labels, predictions, run)["closeness"] > 0.8:
            return None
        return VerificationError("not the brightness", where=str(run))


@TASKS.register("regression")
class Regression(Task):
    """One number for each image: targets are (batch,) float32, answers (batch, 1)."""

    name = "regression"
    score = Score("closeness", "closeness")
    default_loss = "squared_error"
    stand_in = "discs"
    primary = "value"

    def head_size(self, classes):
        return 1

    def expected_head_size(self, data, model=None):
        return 1

    def hits(self, answer, targets):
        return 1 - tf.minimum(1.0, tf.abs(answer[:, 0] - targets))

    def predictions(self, outputs, classes, top):
        return [{"value": float(value)} for (value,) in outputs["value"]]

    def measures(self, loss, outputs, targets):
        values = tf.convert_to_tensor(outputs["value"])
        closeness = self.hits(values, targets)
        return {"loss": self.losses(loss, values, targets), "closeness": closeness}

    def summary(self, measured, targets, classes):
        return {key: float(each.mean(dtype=np.float64)) for key, each in measured.items()}

    def photograph_check(self, classes, others):
        return BrightnessCheck()

    def tolerance(self, precision):
        return 1e-4 if precision == "float32" else 0.05

    def agreement(self, reference, outputs, targets, loss):
        difference = float(np.abs(reference["value"] - outputs["value"]).max())
        return {"examples": len(targets), "max_abs_diff": difference}

    def passes(self, row, precision):
        return row["max_abs_diff"] <= row["tolerance"]

    def refusal(self, row, folder, remedy=None):
        return VerificationError(f"off by {row['max_abs_diff']}", where=str(folder))

    def evaluation_rows(self, result):
        return [("closeness", f"{result['closeness']:.4f}")]

    def verification_cells(self, row):
        return [("difference", f"{row['max_abs_diff']:.2g}")]

    def prediction_cells(self, row):
        return [[("value", f"{row['value']:.3f}")]]


@LOSSES.register("squared_error", tasks=("regression",))
def squared_error(answer, targets):
    """The squared difference."""
    return tf.math.squared_difference(answer[:, 0], targets)


def build(input_shape, classes, *, width: Annotated[int, Field(ge=1)] = 8):
    images = keras.Input(input_shape, name="images")
    x = keras.layers.Conv2D(width, 3, activation="relu", name="stem_conv")(images)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    value = keras.layers.Dense(classes, dtype="float32", name="value")(x)
    return keras.Model(images, value, name="toy_net")


add_model(
    "toy_net",
    build,
    (89, 2600),
    family="toy_regression",
    source="tests",
    min_size=3,
    native=(8, 8, 1),
    classes=1,
    task="regression",
)


@DATASETS.register("discs", shape=(8, 8, 1), tasks=("regression",))
def discs(data, access, *, examples: int = 96, shape: list[int] = [8, 8, 1]):  # noqa: B006 - never changed
    """Grey images and how bright they are, 0-1."""

    def load(seed):
        random = np.random.default_rng(seed)
        brightness = random.uniform(0, 1, examples).astype(np.float32)
        noise = random.normal(0, 10, (examples, *shape))
        pixels = np.clip(255 * brightness[:, None, None, None] + noise, 0, 255)
        return ArraySource(pixels.astype(np.uint8), brightness)

    return Dataset(
        name="discs",
        classes=(),
        shape=tuple(shape),
        sources={"train": lambda: load(1), "test": lambda: load(2)},
        identity=f"discs {examples} {shape}",
    )
