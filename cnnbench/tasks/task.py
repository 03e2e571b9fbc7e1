"""The base class of tasks, which define everything that depends on what a network is trained for.

Data, training, exports and evaluation handle images, targets and named outputs without knowing
their meaning; the task of the recipe's network interprets them. A task is a subclass of Task in a
module of this folder, registered by name. Networks, data sets, losses, augmentations and
compression stages name the tasks that they support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, create_model

from cnnbench.errors import UsageError, VerificationError
from cnnbench.registry.kinds import DATASETS, LOSSES, MODELS, TASKS
from cnnbench.registry.limits import Rate, Share
from cnnbench.registry.registry import Entry, Spec
from cnnbench.tasks.photographs import PhotographCheck

# The task of components that are registered without one.
DEFAULT = "classification"
# Outputs of a network or an exported file by name; the first axis of each is the batch.
Outputs = Mapping[str, Any]
# One entry of a printed table: its title and its value.
Row = tuple[str, str]


@dataclass(frozen=True)
class Score:
    """The score that selects the best weights and that a recipe's `target` refers to.

    It is the mean of `Task.hits` over the examples.

    Attributes:
        key: name in metrics.jsonl, eval.json and `target`.
        title: name in printed tables.
    """

    key: str
    title: str

    def of(self, result: Mapping[str, Any]) -> float:
        """Returns the score in a result, such as of `evaluate`, or in a row of one."""
        return float(result[self.key])

    def of_target(self, target: Any) -> float:
        """Returns the score required by a recipe's `target`."""
        return float(getattr(target, self.key))

    def target_type(self) -> type[BaseModel]:
        """Returns the pydantic model of a recipe's `target` for this score."""
        fields: dict[str, Any] = {
            self.key: (Share, ...),
            "tolerance": (Rate, 0.0),
            "source": (str, ...),
        }
        return create_model(
            "Target",
            __doc__="The published or measured score that the recipe should reach.",
            __config__=ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False),
            **fields,
        )


class Task:
    """A task; subclasses must define the methods that raise NotImplementedError.

    An "answer" is one output of the model, as returned by `answers`.

    Attributes:
        name: name in the registry.
        score: the score in [0, 1]; higher is better.
        default_loss: loss of recipes that do not name one.
        stand_in: data set of synthetic images for smoke runs and speed measurements.
        primary: name of the network's own output among the outputs of `serve`.
        averages_answers: whether answers can be averaged, as test-time augmentation requires.
    """

    name: ClassVar[str]
    score: ClassVar[Score]
    default_loss: ClassVar[str]
    stand_in: ClassVar[str]
    primary: ClassVar[str]
    averages_answers: ClassVar[bool] = True

    # Data and network.

    def head_size(self, classes: Sequence[str]) -> int:
        """Returns the number of output values of the network for each image.

        Args:
            classes: names of the data set's classes; empty if it has no classes.
        """
        raise NotImplementedError

    def expected_head_size(self, data: Spec, model: Spec | None = None) -> int | None:
        """Returns the `head_size` for a recipe, without opening the data set.

        Args:
            data: a recipe's `data`.
            model: a recipe's `model`; its native head size is used if `data` does not determine it.

        Returns:
            The head size; None if it is not known.
        """
        raise NotImplementedError

    def check_head_size(self, model: str, size: int) -> None:
        """Raises a UsageError if a network of this task cannot have this head size."""

    def check_data(self, data: Spec, dataset: Any) -> None:
        """Raises a DataError if an opened data set does not match a recipe's `data`."""

    def stand_in_data(self, data: Spec, model: Spec | None, **options: Any) -> Spec:
        """Returns the spec of synthetic data that replaces a recipe's data.

        Args:
            data: a recipe's `data`.
            model: a recipe's `model`; its native head size is used if `data` does not determine it.
            options: options of the data set `stand_in`: its shape, examples and batch size.
        """
        return DATASETS.spec(self.stand_in, **options)

    def mixing(self, dataset: Any) -> Callable[[Any], Any]:
        """Returns `mixable` for an opened data set."""
        return partial(self.mixable, head_size=self.head_size(dataset.classes))

    def mixable(self, targets: Any, head_size: int) -> Any:
        """Converts targets to a form whose weighted mean is the target of mixed images.

        Args:
            targets: targets of the data set.
            head_size: head size of the network.
        """
        raise NotImplementedError

    # Training.

    def answers(self, outputs: Sequence[Any]) -> list[Any]:
        """Returns the inputs of `losses`: the main answer, then those of auxiliary heads.

        Args:
            outputs: outputs of the model, float32.
        """
        return list(outputs)

    def losses(self, loss: Spec, answer: Any, targets: Any) -> Any:
        """Returns the loss of each image, (batch,) float32.

        Args:
            loss: a recipe's `loss`.
            answer: one of `answers`.
            targets: targets of the data set, or the result of `mixable`.
        """
        return LOSSES.build(loss, answer, targets)

    def hits(self, answer: Any, targets: Any) -> Any:
        """Returns the score of each image, (batch,) bool or float in [0, 1].

        Args:
            answer: one of `answers`.
            targets: targets of the data set, or the result of `mixable`.
        """
        raise NotImplementedError

    def distillation_losses(self, teacher: Any, student: Any, temperature: float) -> Any:
        """Returns the distillation loss of each image, (batch,) float32.

        Args:
            teacher: answer of the teacher.
            student: answer of the student.
            temperature: softening temperature.
        """
        raise NotImplementedError

    def keras_loss(self) -> tuple[Any, list[str]]:
        """Returns a Keras loss and metrics for `compile`, as the baseline of speed measurements."""
        raise NotImplementedError

    # Serving.

    def serve(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns the named inference outputs of a network, float32.

        Args:
            answer: the model's output, float32.
            loss: name of the training loss, which defines the meaning of the answer.
        """
        return {self.primary: answer}

    def keras_layers(self, answer: Any, loss: str) -> dict[str, Any]:
        """Returns the outputs of `serve` as symbolic tensors, using only built-in Keras layers."""
        return {self.primary: answer}

    def read(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs of an exported file from any tool, by the names of `serve`.

        Raises:
            ValueError: no output can be identified as the primary one.
        """
        if self.primary in outputs:
            return dict(outputs)
        if len(outputs) != 1:
            names = ", ".join(outputs) or "that have a row for each image"
            raise ValueError(f"none of the outputs {names} is called {self.primary}")
        (values,) = outputs.values()
        return {self.primary: values}

    def output_of_operation(self, operation: str) -> str:
        """Returns the name of the output computed by a final TFLite operation."""
        return self.primary

    def predictions(
        self, outputs: Mapping[str, np.ndarray], classes: Sequence[str], top: int
    ) -> list[dict[str, Any]]:
        """Returns the prediction for each image, as reported by `predict`.

        Args:
            outputs: outputs by the names of `serve`.
            classes: names of the data set's classes.
            top: maximum number of results per image.
        """
        raise NotImplementedError

    # Evaluation.

    def measures(self, loss: Spec, outputs: Outputs, targets: Any) -> dict[str, Any]:
        """Returns the measures of each image by name, (batch, ...) tensors.

        Args:
            loss: a recipe's `loss`.
            outputs: outputs by the names of `serve`.
            targets: targets of the data set.
        """
        raise NotImplementedError

    def measures_of_file(
        self, loss: Spec, outputs: Mapping[str, np.ndarray], targets: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the `measures` of an exported file's outputs, interpreted as on a device."""
        found = self.measures(loss, outputs, targets)
        return {key: np.asarray(value) for key, value in found.items()}

    def summary(
        self, measured: Mapping[str, np.ndarray], targets: np.ndarray, classes: Sequence[str]
    ) -> dict[str, Any]:
        """Returns the entries of eval.json, computed over all images.

        Args:
            measured: concatenated `measures` of all batches.
            targets: targets of all images.
            classes: names of the data set's classes.
        """
        raise NotImplementedError

    def photograph_check(
        self, classes: Sequence[str], others: Mapping[str, str]
    ) -> PhotographCheck:
        """Returns the check of a network on photographs whose paths say what they show.

        Args:
            classes: names of the data set's classes.
            others: other names, such as synsets, and the class of each.

        Raises:
            UsageError: the task reads nothing from paths.
        """
        raise UsageError(f"photographs have no classes for {self.name}")

    # Verification of exported files.

    def tolerance(self, precision: str) -> float:
        """Returns how much worse a file of a precision may be, as a fraction of the images."""
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
            reference: outputs of the network by the names of `serve`; finite.
            outputs: outputs of the file, from `read`.
            targets: targets of the data set.
            loss: name of the training loss.

        Returns:
            Entries of a row of verify.json: Python numbers, None for values that are not finite.
        """
        raise NotImplementedError

    def passes(self, row: Mapping[str, Any], precision: str) -> bool:
        """Returns whether a row is within row["tolerance"] and all other bounds."""
        raise NotImplementedError

    def refusal(
        self, row: Mapping[str, Any], folder: Path, remedy: str | None = None
    ) -> VerificationError:
        """Returns the error for a row of verify.json that does not pass.

        Args:
            row: the row, with the format and the precision.
            folder: the folder of the exported file.
            remedy: options to suggest if the outputs differ too much from the network's.
        """
        raise NotImplementedError

    # Recipes and reports.

    def problems(self, recipe: Any) -> Iterator[tuple[str, str, str | None]]:
        """Yields problems in a recipe: the key, what is wrong, and what is allowed."""
        yield from ()

    def evaluation_rows(self, result: Mapping[str, Any]) -> list[Row]:
        """Returns the table rows for this task's keys of eval.json."""
        raise NotImplementedError

    def evaluation_tables(
        self, result: Mapping[str, Any]
    ) -> list[tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        """Returns additional tables of eval.json, each as column titles and rows."""
        return []

    def photograph_rows(self, result: Mapping[str, Any]) -> list[Row]:
        """Returns what is printed of this task's keys of check.json."""
        raise NotImplementedError

    def verification_cells(self, row: Mapping[str, Any]) -> list[Row]:
        """Returns the titles and cells for this task's keys of a row of verify.json."""
        raise NotImplementedError

    def prediction_cells(self, row: Mapping[str, Any]) -> list[list[Row]]:
        """Returns the table lines for one image of `predictions`, each of titles and cells."""
        raise NotImplementedError


@cache
def task_named(name: str) -> Task:
    """Returns the task with the given name.

    Raises:
        UsageError: the name is unknown.
    """
    task: Task = TASKS.get(name).build()
    return task


def task_of(model: Spec | str) -> Task:
    """Returns the task of a network: a recipe's `model`, or the name of a registered one."""
    name = model if isinstance(model, str) else model.name
    return task_named(MODELS.get(name).facts.get("task", DEFAULT))


def task_of_data(data: Spec) -> Task:
    """Returns the task that a recipe's `data` provides targets for."""
    return task_named(tasks_served(DATASETS.get(data.name))[0])


def tasks_served(entry: Entry) -> tuple[str, ...]:
    """Returns the names of the tasks that a registered component supports."""
    tasks: tuple[str, ...] = entry.facts.get("tasks", (DEFAULT,))
    return tasks
