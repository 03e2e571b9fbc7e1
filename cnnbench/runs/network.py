"""Trained networks, rebuilt from a run's recipe and saved weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cnnbench.backend import session
from cnnbench.backend.lazy import tf
from cnnbench.compression import Record, rebuild
from cnnbench.data.examples import Dataset
from cnnbench.data.images import Interpolation
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.preprocess import Preprocess, short_side
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model, without_auxiliary
from cnnbench.registry.kinds import ModelSpec
from cnnbench.runs import checkpoint, file_lists, variables
from cnnbench.runs.run import Run
from cnnbench.tasks.task import Task


@dataclass(frozen=True)
class Network:
    """A float32 model with its preprocessing and postprocessing.

    model: maps normalized images to the task's outputs.
    preprocess: maps uint8 pixels to normalized images.
    task: the task it was trained for.
    classes: the names of the data set's classes.
    loss: the name of the training loss, which determines what the outputs mean.
    pixel_shape: (height, width, channels) of input images as stored.
    short_side: pixels to which the short side of other images is scaled before the center crop.
    interpolation: how they are scaled.
    """

    model: Any
    preprocess: Preprocess
    task: Task
    classes: tuple[str, ...]
    loss: str
    pixel_shape: tuple[int, int, int]
    short_side: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, images: Any) -> dict[str, Any]:
        """Returns the named outputs of the task, float32.

        Args:
            images: (batch, *pixel_shape) uint8, or float in [0, 255].
        """
        return self.of_normalised(self.preprocess(images))

    def of_normalised(self, images: Any) -> dict[str, Any]:
        """Returns the named outputs of the task, float32, for preprocessed images.

        Args:
            images: (batch, height, width, channels) float32, normalized.
        """
        return self.task.serve(self._outputs(images), self.loss)

    def answer(self, images: Any) -> Any:
        """Returns the raw outputs of the model, float32.

        Args:
            images: (batch, *pixel_shape) uint8, or float in 0-255.
        """
        return self._outputs(self.preprocess(images))

    def _outputs(self, images: Any) -> Any:
        outputs = self.model(images, training=False)
        return tf.nest.map_structure(lambda each: tf.cast(each, tf.float32), outputs)


@session.isolated()
def restore(run: Run, *, weights: str = "best") -> Network:
    """Rebuilds the network of a run in float32, and loads its weights.

    Args:
        run: a run with at least one finished epoch.
        weights: "best", chosen by validation, or "last".

    Raises:
        RunError: the run has no weights yet, or they are damaged or belong to another network.
    """
    saved = checkpoint.load(run.best) if weights == "best" else checkpoint.last(run.checkpoints)
    session.prepare(seed=run.recipe.seed, deterministic=False)
    with session.precision("float32"):
        return _network(run, model_of(run, saved))


def build(
    model: ModelSpec, shape: tuple[int, int, int], head_size: int, architecture: Sequence[Record]
) -> Any:
    """Builds the model of a recipe, changed by its compression stages, with untrained weights.

    Without compression stages, auxiliary heads, used only in training, are further outputs.

    Args:
        model: the recipe's model.
        shape: (height, width, channels) of the images.
        head_size: number of outputs per image.
        architecture: the records of the compression stages.
    """
    return rebuild(build_model(model, shape, head_size, auxiliary=not architecture), architecture)


@session.isolated()
def teacher(run: Run, classes: Sequence[str], pixel_shape: tuple[int, int, int]) -> Network:
    """Returns the network of a run as a teacher, in float32.

    Args:
        run: a run with weights.
        classes: the student's classes.
        pixel_shape: (height, width, channels) of the student's images as stored.

    Raises:
        UsageError: the teacher's classes or image shape differ from the student's.
        RunError: the run has no weights, or they are damaged.
    """
    with session.precision("float32"):
        found = _network(run, model_of(run))
    where = str(run.path)
    if found.classes != tuple(classes):
        raise UsageError(
            "the teacher was trained on other classes",
            where=where,
            allowed="must be those of the data",
        )
    if found.pixel_shape != pixel_shape:
        what = f"the teacher takes images of {found.pixel_shape}"
        raise UsageError(what, where=where, allowed=f"must be {pixel_shape}")
    return found


def model_of(run: Run, saved: checkpoint.Checkpoint | None = None) -> Any:
    """Builds the model of a run with its weights, under the current precision policy.

    Args:
        run: a run with weights.
        saved: a checkpoint of the run; None: its best weights.

    Raises:
        RunError: the run has no weights, or they are damaged or belong to another network.
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
        run.recipe.data.interpolation or "bilinear",
    )


def access_of(run: Run, access: Access | None) -> Access:
    """Returns access to the data of a run: where `access` says, or where the training found it.

    If it is not there any more, but the run and the data moved together, it is where it moved to.
    """
    access, kept = access or Access(), run.data().data_dir
    if access.data_dir is None and kept:
        access = replace(access, data_dir=run.now(kept))
    path = getattr(run.recipe.data, "path", None)
    if access.data_path is None and path:
        access = replace(access, data_path=run.now(path))
    return replace(access, removed=access.removed or tuple(run.data().removed_files))


def open_data(run: Run, access: Access) -> Dataset:
    """Opens the data set that a run was trained on.

    Args:
        run: the run.
        access: where data sets are stored; see `access_of`.

    Raises:
        DataError: the data set is missing.
        RunError: it differs from the data that the run was trained on; see `file_lists`.
    """
    access = access_of(run, access)
    dataset = open_dataset(run.recipe.data, access)
    file_lists.must_match(run, dataset, access.data_path)
    return dataset
