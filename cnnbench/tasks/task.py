"""What a task is: everything that depends on what a network is trained for.

Data, training, exports and evaluation handle images, targets and named outputs without knowing what
they mean; the task of a recipe's network does. A task is a subclass of Task in a module of this
folder, registered by its name; networks, data sets, losses, augmentations and stages of compression
name the tasks that they serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, create_model

from cnnbench.errors import VerificationError
from cnnbench.registry.kinds import DATASETS, LOSSES, MODELS, TASKS
from cnnbench.registry.limits import Rate, Share
from cnnbench.registry.registry import Entry, Spec

# The task of what is registered without one.
DEFAULT = "classification"
# The outputs of a network or of an exported file, by name; the first axis of each is the batch.
Outputs = Mapping[str, Any]
# A row of a table for people: what is measured, and its value.
Row = tuple[str, str]


@dataclass(frozen=True)
class Score:
    """The number that decides which weights are the best and that a recipe's target is about.

    key: in metrics.jsonl, eval.json and `target`; the mean of `Task.hits` over the examples.
    title: as people read it.
    """

    key: str
    title: str

    def of_target(self, target: Any) -> float:
        """Returns the score that a recipe's target asks for."""
        return float(getattr(target, self.key))

    def target_type(self) -> type[BaseModel]:
        """Returns the type of a recipe's `target` for this score."""
        fields: dict[str, Any] = {
            self.key: (Share, ...),
            "tolerance": (Rate, 0.0),
            "source": (str, ...),
        }
        return create_model(
            "Target",
            __doc__="The published or measured number that the recipe is to reach.",
            __config__=ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False),
            **fields,
        )


class Task:
    """A task; the methods that raise NotImplementedError are what each has to define.

    name: in the registry.
    score: higher is better, 0-1.
    default_loss: of a recipe that names none.
    stand_in: the data set of made-up images for smoke runs and speed measurements.
    primary: the name, among the outputs of `serve`, of the network's own output.
    averages_answers: whether the mean of answers is an answer, as test-time augmentation needs.
    """

    name: ClassVar[str]
    score: ClassVar[Score]
    default_loss: ClassVar[str]
    stand_in: ClassVar[str]
    primary: ClassVar[str]
    averages_answers: ClassVar[bool] = True

    # Data and network.

    def head_size(self, classes: Sequence[str]) -> int:
        """Returns how many values the network gives for each image.

        Args:
            classes: the names of the data set's classes, none where it has none.
        """
        raise NotImplementedError

    def expected_head_size(self, data: Spec, model: Spec | None = None) -> int | None:
        """Returns `head_size` of a recipe's data before the data set is opened.

        Args:
            data: a recipe's `data`.
            model: whose native number is returned where the data do not tell; None: None is.
        """
        raise NotImplementedError

    def check_head_size(self, model: str, size: int) -> None:
        """Raises a UsageError if no network of this task can have so many values."""

    def check_data(self, data: Spec, dataset: Any) -> None:
        """Raises a DataError if an opened data set is not what a recipe's `data` says."""

    def stand_in_data(self, data: Spec, model: Spec | None, **options: Any) -> Spec:
        """Returns the spec of made-up data in place of a recipe's.

        Args:
            data: a recipe's `data`.
            model: a recipe's `model`, whose native head counts where the data do not tell.
            options: of the data set `stand_in`: its shape, examples and batch size.
        """
        return DATASETS.spec(self.stand_in, **options)

    def mixing(self, dataset: Any) -> Callable[[Any], Any]:
        """Returns `mixable` for an opened data set."""
        return partial(self.mixable, head_size=self.head_size(dataset.classes))

    def mixable(self, targets: Any, head_size: int) -> Any:
        """Returns targets that a weighted mean of two images can have a weighted mean of.

        Args:
            targets: as the data set has them.
            head_size: of the network.
        """
        raise NotImplementedError

    # Training.

    def answers(self, outputs: Sequence[Any]) -> list[Any]:
        """Returns what `losses` takes: the network's answer first, then those of auxiliary heads.

        Args:
            outputs: of the model, float32.
        """
        return list(outputs)

    def losses(self, loss: Spec, answer: Any, targets: Any) -> Any:
        """Returns the loss of each image, (batch,) float32.

        Args:
            loss: a recipe's `loss`.
            answer: one of `answers`.
            targets: of the data set, or as `mixable` returns them.
        """
        return LOSSES.build(loss, answer, targets)

    def hits(self, answer: Any, targets: Any) -> Any:
        """Returns the score of each image, (batch,) bool or float in 0-1.

        Args: as for `losses`.
        """
        raise NotImplementedError

    def distillation_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """Returns how far each of a student's answers is from the teacher's, (batch,) float32."""
        raise NotImplementedError

    def keras_loss(self) -> tuple[Any, list[str]]:
        """Returns a Keras loss and metrics for `compile`, to compare the speed of training with."""
        raise NotImplementedError

    # Serving.

    def serve(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns the named outputs of a network that is asked, float32.

        Args:
            answer: the model's output, float32.
            loss: the name of the loss that it was trained with, which says what it means.
        """
        return {self.primary: answer}

    def keras_layers(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns what `serve` does, as Keras tensors made by layers of Keras's own."""
        return {self.primary: answer}

    def read(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs of an exported file, of any writer, by the names of `serve`.

        Raises:
            ValueError: none of them can be what the task needs.
        """
        if self.primary in outputs:
            return dict(outputs)
        if len(outputs) > 1:
            names = ", ".join(outputs)
            raise ValueError(f"none of the outputs {names} is called {self.primary}")
        (values,) = outputs.values()
        return {self.primary: values}

    def output_of_operation(self, operation: str) -> str:
        """Returns the name of the output that a TFLite operation at the end of a file computes."""
        return self.primary

    def predictions(
        self, outputs: Mapping[str, np.ndarray], classes: Sequence[str], top: int
    ) -> list[dict[str, Any]]:
        """Returns what `predict` says of each image besides its file.

        Args:
            outputs: by the names of `serve`.
            classes: the names of the data set's classes.
            top: how many answers to give where there are several.
        """
        raise NotImplementedError

    # Evaluation.

    def measures(self, loss: Spec, outputs: Outputs, targets: Any) -> dict[str, Any]:
        """Returns what is measured of each image, arrays over the batch, computed by TensorFlow.

        Args:
            loss: a recipe's `loss`.
            outputs: by the names of `serve`.
            targets: of the data set.
        """
        raise NotImplementedError

    def measures_of_file(
        self, loss: Spec, outputs: Mapping[str, np.ndarray], targets: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns `measures` of the outputs of an exported file, as a device would answer."""
        found = self.measures(loss, outputs, targets)
        return {key: np.asarray(value) for key, value in found.items()}

    def summary(
        self, measured: Mapping[str, np.ndarray], targets: np.ndarray, classes: Sequence[str]
    ) -> dict[str, Any]:
        """Returns what eval.json says of the measures of all images.

        Args:
            measured: `measures` of all batches, put together.
            targets: of all images.
            classes: the names of the data set's classes.
        """
        raise NotImplementedError

    # Verification of exported files.

    def tolerance(self, precision: str) -> float:
        """Returns how much worse a file of a precision may be, as a share of the images."""
        raise NotImplementedError

    def agreement(
        self,
        reference: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        targets: np.ndarray,
        loss: str,
    ) -> dict[str, Any]:
        """Compares the outputs of an exported file with the network's own.

        Args:
            reference: the network's, by the names of `serve`; finite.
            outputs: the file's, as `read` returns them.
            targets: of the data set.
            loss: the name of the loss that the network was trained with.

        Returns:
            The keys of a row of verify.json; plain numbers, None where one is not finite.
        """
        raise NotImplementedError

    def passes(self, row: Mapping[str, Any], precision: str) -> bool:
        """Tells whether what `agreement` found is within row["tolerance"] and all other bounds."""
        raise NotImplementedError

    def refusal(
        self, row: Mapping[str, Any], folder: Path, remedy: str | None = None
    ) -> VerificationError:
        """Returns the error for a row of verify.json that does not pass.

        Args:
            row: with the format and the precision.
            folder: where the file lies.
            remedy: options to try where its outputs are too far from the network's.
        """
        raise NotImplementedError

    # Recipes and reports.

    def problems(self, recipe: Any) -> Iterator[tuple[str, str, str | None]]:
        """Yields what does not fit in a recipe: the key, what is wrong, and what is allowed."""
        yield from ()

    def evaluation_rows(self, result: Mapping[str, Any]) -> list[Row]:
        """Returns what a table of eval.json shows of this task's keys."""
        raise NotImplementedError

    def evaluation_tables(
        self, result: Mapping[str, Any]
    ) -> list[tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """Returns further tables of eval.json, each its column titles and its rows."""
        return []

    def verification_cells(self, row: Mapping[str, Any]) -> list[Row]:
        """Returns what a table of verify.json shows of this task's keys: titles and cells."""
        raise NotImplementedError

    def prediction_cells(self, row: Mapping[str, Any]) -> list[list[Row]]:
        """Returns what a table shows of one image of `predictions`: lines of titles and cells."""
        raise NotImplementedError


@cache
def task_named(name: str) -> Task:
    """Returns the task of that name.

    Raises:
        UsageError: there is none.
    """
    task: Task = TASKS.get(name).build()
    return task


def task_of(model: Spec | str) -> Task:
    """Returns the task of a network: a recipe's `model`, or the name of a registered one."""
    name = model if isinstance(model, str) else model.name
    return task_named(MODELS.get(name).facts.get("task", DEFAULT))


def task_of_data(data: Spec) -> Task:
    """Returns the task whose targets a data set has."""
    return task_named(tasks_served(DATASETS.get(data.name))[0])


def tasks_served(entry: Entry) -> tuple[str, ...]:
    """Returns the names of the tasks that a registered part serves."""
    tasks: tuple[str, ...] = entry.facts.get("tasks", (DEFAULT,))
    return tasks
