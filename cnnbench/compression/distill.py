"""Knowledge distillation: the loss of a student that learns from a teacher and the targets."""

from __future__ import annotations

from typing import Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.compression.stages import Distillation
from cnnbench.errors import UsageError
from cnnbench.models.build import HINT, feature_maps
from cnnbench.tasks.task import Task


class Lesson:
    """A teacher network, and the distillation loss of its student.

    Args:
        teacher: a model from normalized images to outputs of the task.
        prepare: converts uint8 pixels to the teacher's inputs.
        stage: the recipe's `distill` stage.
        task: of both the student and the teacher.
    """

    def __init__(self, teacher: Any, prepare: Any, stage: Distillation, task: Task):
        self._prepare, self._stage, self._task = prepare, stage, task
        self._maps = feature_maps(teacher) if stage.hints else {}
        self._set_outputs(teacher, [])

    def _set_outputs(self, teacher: Any, sizes: list[str]) -> None:
        """Makes the teacher return its outputs and its feature maps of the given sizes."""
        maps = [self._maps[size] for size in sizes]
        self._teacher = keras.Model(teacher.input, [teacher.outputs[0], *maps])
        # Frozen: no gradients are computed, so no activations need be kept for them.
        self._teacher.trainable = False

    @property
    def guesses(self) -> int:
        """Number of the teacher's feature maps that the student predicts."""
        return len(self._teacher.outputs) - 1

    def with_hints(self, student: Any) -> Any:
        """Returns the student, with predictions of the teacher's feature maps appended if hinted.

        Raises:
            UsageError: teacher and student have no feature maps of the same size.
        """
        if not self._stage.hints:
            return student
        own = feature_maps(student)
        if not (sizes := [size for size in self._maps if size in own]):
            raise UsageError(
                "distill.hints: teacher and student have no feature maps of the same size",
                allowed="set hints to 0, or choose another teacher",
            )
        self._set_outputs(self._teacher, sizes)
        guesses = [
            keras.layers.Conv2D(self._maps[size].shape[-1], 1, name=f"{HINT}{size}")(own[size])
            for size in sizes
        ]
        return keras.Model(student.input, [*student.outputs, *guesses], name=student.name)

    def losses(self, images: Any, outputs: list[Any], losses: Any) -> Any:
        """Returns the loss of each image, (batch,).

        Args:
            images: (batch, height, width, channels) uint8 pixels, or floats in [0, 255].
            outputs: the student's outputs; predictions of feature maps, if any, come last.
            losses: (batch,), the losses against the targets.
        """
        answer, *maps = tf.nest.flatten(self._teacher(self._prepare(images), training=False))
        stage = self._stage
        total = (1 - stage.share) * losses
        total += stage.share * self._task.distillation_losses(answer, outputs[0], stage.temperature)
        for theirs, own in zip(maps, outputs[len(outputs) - len(maps) :], strict=True):
            total += stage.hints * tf.reduce_mean((theirs - own) ** 2, axis=(1, 2, 3))
        return total
