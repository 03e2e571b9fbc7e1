"""Distillation: what a student learns from a teacher besides the targets."""

from __future__ import annotations

from typing import Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.compression.stages import Distillation
from cnnbench.errors import UsageError
from cnnbench.models.build import HINT, feature_maps
from cnnbench.tasks.task import Task


class Lesson:
    """A teacher, and the loss of a student that learns from it.

    Args:
        teacher: a model, normalised images to answers of the task.
        prepare: uint8 pixels to what the teacher takes.
        stage: what the recipe says.
        task: of the student and the teacher.
    """

    def __init__(self, teacher: Any, prepare: Any, stage: Distillation, task: Task):
        self._prepare, self._stage, self._task = prepare, stage, task
        self._maps = feature_maps(teacher) if stage.hints else {}
        self._ask(teacher, [])

    def _ask(self, teacher: Any, sizes: list[str]) -> None:
        """Has the teacher return its answers and its feature maps of some sizes."""
        maps = [self._maps[size] for size in sizes]
        self._teacher = keras.Model(teacher.input, [teacher.outputs[0], *maps])
        # Nothing of it is differentiated, and so nothing need be remembered for that.
        self._teacher.trainable = False

    @property
    def guesses(self) -> int:
        """How many feature maps the student guesses."""
        return len(self._teacher.outputs) - 1

    def with_hints(self, student: Any) -> Any:
        """Returns a model with guesses of the teacher's feature maps as last outputs, if wanted.

        Raises:
            UsageError: the two have no size of feature maps in common.
        """
        if not self._stage.hints:
            return student
        own = feature_maps(student)
        if not (sizes := [size for size in self._maps if size in own]):
            raise UsageError("teacher and student have no feature maps of one size")
        self._ask(self._teacher, sizes)
        guesses = [
            keras.layers.Conv2D(self._maps[size].shape[-1], 1, name=f"{HINT}{size}")(own[size])
            for size in sizes
        ]
        return keras.Model(student.input, [*student.outputs, *guesses], name=student.name)

    def losses(self, images: Any, outputs: list[Any], losses: Any) -> Any:
        """Returns each image's loss.

        Args:
            images: (batch, height, width, channels) uint8 pixels, or floats in 0-255.
            outputs: the student's for them: its answer and, as the last ones, its guesses.
            losses: (batch,), those of the targets.
        """
        answer, *maps = tf.nest.flatten(self._teacher(self._prepare(images), training=False))
        stage = self._stage
        total = (1 - stage.share) * losses
        total += stage.share * self._task.distillation_losses(answer, outputs[0], stage.temperature)
        for theirs, own in zip(maps, outputs[len(outputs) - len(maps) :], strict=True):
            total += stage.hints * tf.reduce_mean((theirs - own) ** 2, axis=(1, 2, 3))
        return total
