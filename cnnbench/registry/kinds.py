"""The registries of what a recipe can name, and the options that all parts of a kind share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from cnnbench.errors import UsageError
from cnnbench.registry.limits import (
    Factor,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Side,
)
from cnnbench.registry.registry import Registry, Spec

WEIGHT_FILES = (".h5", ".safetensors")


class ModelSpec(Spec):
    """What every network takes besides its own options."""

    weights: str | None = Field(
        None, description="published weights to start from: a preset, or a file .h5 or .safetensors"
    )
    freeze: Literal["stem", "stages", "all_but_head"] | None = Field(
        None,
        description="what keeps the weights it starts with: the stem, the stages too, or all but "
        "the last layer",
    )


class DataSpec(Spec):
    """What every data set takes besides its own options."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    validation: NonNegativeInt | Factor = Field(
        0, description="examples, or the share of them, carved from the training split"
    )
    image_size: Side | None = Field(
        None, description="height and width in pixels that the network sees; null: as they are"
    )
    resize_short: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        None, description="short side in pixels before the centre crop; null: image_size"
    )
    color: Literal["rgb", "grey", "hsv", "yuv"] | None = Field(
        None, description="colour space that the network sees; null: as stored"
    )
    mean: list[float] | None = Field(None, description="per channel, of values in 0-1")
    std: list[Positive] | None = Field(None, description="as mean")
    classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="how many classes you expect; checked against the data"
    )
    limit: PositiveInt | None = Field(None, description="use only so many examples of each split")
    on_bad_image: Literal["fail", "skip"] = "fail"


class ScheduleSpec(Spec):
    """What every schedule takes besides its own options."""

    warmup_epochs: NonNegative | NonNegativeInt = Field(
        0, description="linear warm-up from near zero before the schedule begins"
    )


class CompressionSpec(Spec):
    """What every stage of compression takes besides its own options."""

    epochs: PositiveInt | None = Field(
        None, description="that the stage trains; null: as long as train says"
    )
    lr_scale: Positive = Field(1.0, description="of optimizer.lr while the stage trains")


TASKS = Registry("task", "cnnbench.tasks")
MODELS = Registry("model", "cnnbench.models", ModelSpec)
DATASETS = Registry("data set", "cnnbench.data.sources", DataSpec)
AUGMENTATIONS = Registry("augmentation", "cnnbench.data.augment")
AugmentationKind = Literal["crop", "image", "batch", "mix"]
LOSSES = Registry("loss", "cnnbench.tasks")
OPTIMIZERS = Registry("optimizer", "cnnbench.optim.optimizers")
SCHEDULES = Registry("schedule", "cnnbench.optim.schedules", ScheduleSpec)
COMPRESSIONS = Registry("compression", "cnnbench.compression.stages", CompressionSpec)


def min_size(model: Spec) -> int:
    """Returns the least image height and width in pixels that a model takes."""
    least = MODELS.get(model.name).facts["min_size"]
    return int(least(model.options()) if callable(least) else least)


def kind_of(augmentation: Spec) -> AugmentationKind:
    """Returns what an augmentation works on; cnnbench.data.augment tells of the kinds."""
    kind: AugmentationKind = AUGMENTATIONS.get(augmentation.name).facts.get("kind", "batch")
    return kind


def excess(augmentation: Spec, shape: Sequence[int]) -> tuple[str, int] | None:
    """Returns the option of an augmentation that is too large for the images, and the most it may.

    Args:
        augmentation: what a recipe says.
        shape: (height, width, …) of the images in pixels.
    """
    most = AUGMENTATIONS.get(augmentation.name).facts.get("most")
    if most is None:
        return None
    options = augmentation.options()
    option, limit = most(options, min(shape[:2]))
    return (option, limit) if options[option] > limit else None


def input_shape(data: DataSpec, stored: tuple[int | None, int | None, int]) -> tuple[int, int, int]:
    """Returns the (height, width, channels) that the network sees of images stored as `stored`.

    Raises:
        UsageError: the stored images have no common size and the recipe gives none.
    """
    height, width, channels = stored
    if data.image_size:
        height = width = data.image_size
    if height is None or width is None:
        raise UsageError(
            f"{data.name} has images of many sizes", key="data.image_size", allowed="set one"
        )
    return height, width, channels if data.color is None else 1 if data.color == "grey" else 3
