"""A trained network: rebuilt from a run's recipe, with the weights that the run kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.compression import Record, rebuild
from cnnbench.data.examples import Dataset
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.preprocess import Preprocess, short_side
from cnnbench.errors import RunError, UsageError
from cnnbench.models.build import build_model, without_auxiliary
from cnnbench.registry.kinds import ModelSpec
from cnnbench.runs import checkpoint, variables
from cnnbench.runs.run import Run
from cnnbench.tasks.task import Task


@dataclass(frozen=True)
class Network:
    """A float32 model with everything that stands before and behind it.

    model: normalised images to the task's answers.
    preprocess: uint8 pixels to normalised images.
    task: what it is for.
    classes: the names of the data set's classes.
    loss: the name of the loss that it was trained with, which says what its answers mean.
    pixel_shape: (height, width, channels) of the images it takes, as they are stored.
    short_side: pixels that the short side of other images is scaled to before the centre crop.
    """

    model: Any
    preprocess: Preprocess
    task: Task
    classes: tuple[str, ...]
    loss: str
    pixel_shape: tuple[int, int, int]
    short_side: int

    def __call__(self, images: Any) -> dict[str, Any]:
        """Returns the named outputs of the task, float32.

        Args:
            images: (batch, *pixel_shape) uint8, or float in 0-255.
        """
        return self.of_normalised(self.preprocess(images))

    def of_normalised(self, images: Any) -> dict[str, Any]:
        """Returns what a call does, of images that are preprocessed already."""
        return self.task.serve(self._answer(images), self.loss)

    def answer(self, images: Any) -> Any:
        """Returns the model's own output, float32, of pixels."""
        return self._answer(self.preprocess(images))

    def _answer(self, images: Any) -> Any:
        outputs = self.model(images, training=False)
        return tf.nest.map_structure(lambda each: tf.cast(each, tf.float32), outputs)


@session.isolated()
def restore(run: Run, *, weights: str = "best") -> Network:
    """Rebuilds the network of a run, in float32, and loads its arrays.

    Args:
        run: a run that has ended an epoch at least.
        weights: "best", as the run chose by validation, or "last".

    Raises:
        RunError: the run has no weights yet, or they are damaged or of another network.
    """
    saved = checkpoint.load(run.best) if weights == "best" else checkpoint.last(run.checkpoints)
    session.prepare(seed=run.recipe.seed, deterministic=False)
    with session.precision("float32"):
        return _network(run, model_of(run, saved))


def build(
    model: ModelSpec, shape: tuple[int, int, int], head_size: int, architecture: Sequence[Record]
) -> Any:
    """Builds the model of a recipe as the stages of its compression made it, without their values.

    A classifier that serves training alone is its second output, unless there was such a stage.

    Args:
        model: what the recipe names.
        shape: (height, width, channels) of the images.
        head_size: how many values it gives for each image.
        architecture: the records of the stages.
    """
    return rebuild(build_model(model, shape, head_size, auxiliary=not architecture), architecture)


@session.isolated()
def teacher(run: Run, classes: Sequence[str], pixel_shape: tuple[int, int, int]) -> Network:
    """Returns the network of a run as a teacher, in float32.

    Args:
        run: a run with weights.
        classes: those of the student.
        pixel_shape: (height, width, channels) of the images that the student is given.

    Raises:
        UsageError: the classes or the images are not the student's.
        RunError: the run has no weights, or they are damaged.
    """
    with session.precision("float32"):
        found = _network(run, model_of(run))
    where = str(run.path)
    if found.classes != tuple(classes):
        raise UsageError(
            "the teacher was trained on other classes", where=where, allowed="those of the data"
        )
    if found.pixel_shape != pixel_shape:
        what = f"the teacher takes images of {found.pixel_shape}"
        raise UsageError(what, where=where, allowed=f"images of {pixel_shape}")
    return found


def model_of(run: Run, saved: checkpoint.Checkpoint | None = None) -> Any:
    """Builds the model of a run, under the precision policy at the time, with its weights.

    Args:
        run: with weights.
        saved: a checkpoint of it; None: the best weights.

    Raises:
        RunError: the run has no weights, or they are damaged or of another network.
    """
    saved = saved or checkpoint.load(run.best)
    data = run.data()
    height, width, channels = data.input_shape
    shape = (height, width, channels)
    head_size = run.recipe.task.head_size(data.classes)
    model = build(run.recipe.model, shape, head_size, run.architecture())
    named = variables.variables_by_name("model", model.variables)
    variables.assign(named, variables.kept_weights(saved.arrays), run.path)
    return model


def _network(run: Run, model: Any) -> Network:
    data = run.data()
    height, width, _ = data.input_shape
    prepare = Preprocess(data.color, tuple(data.mean), tuple(data.std))
    short = short_side(run.recipe.data, (height, width))
    pixels = (height, width, data.stored_channels)
    return Network(
        without_auxiliary(model),
        prepare,
        run.recipe.task,
        tuple(data.classes),
        run.recipe.loss.name,
        pixels,
        short,
    )


def open_data(run: Run, access: Access) -> Dataset:
    """Opens the data set that a run was trained on, where it lay then unless told otherwise.

    Raises:
        RunError: it is not the data that the run was trained on.
    """
    about = run.data()
    if access.data_dir is None and about.data_dir:
        access = Access(Path(about.data_dir), access.download)
    dataset = open_dataset(run.recipe.data, access)
    same = dataset.fingerprint == about.fingerprint or about.fingerprint is None
    if not same or list(dataset.classes) != about.classes:
        raise RunError("the data set is not the one of the training", where=str(run.path))
    return dataset
