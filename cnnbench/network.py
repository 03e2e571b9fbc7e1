"""A trained network: rebuilt from a run's recipe, with the weights that the run kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnbench import checkpoint, runtime
from cnnbench.data.datasets import Access, open_dataset
from cnnbench.data.examples import Dataset
from cnnbench.data.pipeline import short_side
from cnnbench.data.preprocess import Preprocess
from cnnbench.errors import RunError
from cnnbench.lazy import tf
from cnnbench.models import build_model, without_auxiliary
from cnnbench.run import Run
from cnnbench.tasks.classification import probabilities


@dataclass(frozen=True)
class Network:
    """A float32 model with everything that stands before and behind it.

    model: normalised images to logits.
    preprocess: uint8 pixels to normalised images.
    classes: names in the order of the logits.
    loss: the loss it was trained with, which says what its logits mean.
    pixel_shape: (height, width, channels) of the images it takes, as they are stored.
    short_side: pixels that the short side of other images is scaled to before the centre crop.
    """

    model: Any
    preprocess: Preprocess
    classes: tuple[str, ...]
    loss: str
    pixel_shape: tuple[int, int, int]
    short_side: int

    def __call__(self, images: Any) -> dict[str, Any]:
        """Returns (batch, classes) "probabilities" and "logits", float32.

        Args:
            images: (batch, *pixel_shape) uint8, or float in 0-255.
        """
        return self.of_normalised(self.preprocess(images))

    def of_normalised(self, images: Any) -> dict[str, Any]:
        """Returns what a call does, of images that are preprocessed already."""
        logits = tf.cast(self.model(images, training=False), tf.float32)
        return {"probabilities": probabilities(logits, self.loss), "logits": logits}


def restore(run: Run, *, weights: str = "best") -> Network:
    """Rebuilds the network of a run, in float32, and loads its arrays.

    Args:
        run: a run that has ended an epoch at least.
        weights: "best", as the run chose by validation, or "last".

    Raises:
        RunError: the run has no weights yet, or they are damaged or of another network.
    """
    saved = checkpoint.load(run.best) if weights == "best" else checkpoint.last(run.checkpoints)
    runtime.prepare(seed=run.recipe.seed, deterministic=False)
    data = run.data()
    classes = tuple(data.classes)
    height, width, channels = data.input_shape
    with runtime.precision("float32"):
        model = build_model(
            run.recipe.model, (height, width, channels), len(classes), auxiliary=True
        )
    named = checkpoint.variables_by_name("model", model.variables)
    checkpoint.assign(named, checkpoint.kept_weights(saved.arrays), run.path)
    prepare = Preprocess(data.color, tuple(data.mean), tuple(data.std))
    short = short_side(run.recipe.data, (height, width))
    pixels = (height, width, data.stored_channels)
    return Network(without_auxiliary(model), prepare, classes, run.recipe.loss.name, pixels, short)


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
