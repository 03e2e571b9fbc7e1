"""The registries of the components a recipe can name, and the options shared by each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbench.errors import UsageError
from cnnbench.registry.limits import (
    Factor,
    NonEmpty,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    Side,
)
from cnnbench.registry.registry import Registry, Spec

WEIGHT_FILES = (".h5", ".safetensors")


class ModelSpec(Spec):
    """Options that every network takes in addition to its own."""

    weights: NonEmpty | None = Field(
        None, description="pretrained weights: a preset name, or a .h5 or .safetensors file"
    )
    weights_source: str | None = Field(
        None,
        description="network that the weights are of, such as timm:efficientnet_b0, if their file "
        "does not say; cnnbench list weights has all",
    )
    freeze: Literal["stem", "stages", "all_but_head"] | None = Field(
        None,
        description="layers to freeze: the stem, the stem and the stages, or all but the last "
        "layer",
    )


class DataSpec(Spec):
    """Options that every data set takes in addition to its own."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    validation: NonNegativeInt | Factor = Field(
        0, description="examples, or fraction of examples, to hold out of the training split"
    )
    image_size: Side | None = Field(
        None, description="height and width of the network's input in pixels; null: as stored"
    )
    resize_short: Annotated[int, Field(ge=1, le=8192)] | None = Field(
        None, description="short side in pixels before the center crop; null: image_size"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how images are scaled before the center crop; null: bilinear"
    )
    color: Literal["rgb", "bgr", "grey", "hsv", "yuv"] | None = Field(
        None, description="color space of the network's input; null: as stored"
    )
    mean: list[float] | None = Field(
        None, description="mean of each channel, of values in [0, 1], for normalization"
    )
    std: list[Positive] | None = Field(
        None, description="standard deviation of each channel, of values in [0, 1]"
    )
    classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="expected number of classes; checked against the data"
    )
    limit: PositiveInt | None = Field(None, description="maximum examples to use of each split")
    on_bad_image: Literal["fail", "skip"] = "fail"
    value_range: Range | None = Field(
        None,
        description="values of black and white in images that are signed, float or have more than "
        "8 bits; null: 0 to 1 for floats, the range of 12 or 16 bits",
    )


class ScheduleSpec(Spec):
    """Options that every schedule takes in addition to its own."""

    warmup_epochs: NonNegative | NonNegativeInt = Field(
        0, description="epochs of linear warm-up from near zero before the schedule starts"
    )


class CompressionSpec(Spec):
    """Options that every compression stage takes in addition to its own."""

    epochs: PositiveInt | None = Field(
        None, description="epochs to train in this stage; null: train.epochs"
    )
    lr_scale: Positive = Field(1.0, description="factor on optimizer.lr in this stage")


TASKS = Registry("task", "cnnbench.tasks")
MODELS = Registry("model", "cnnbench.models", ModelSpec)
DATASETS = Registry("data set", "cnnbench.data.sources", DataSpec)
AUGMENTATIONS = Registry("augmentation", "cnnbench.data.augment")
AugmentationKind = Literal["crop", "image", "batch", "mix"]
LOSSES = Registry("loss", "cnnbench.tasks")
OPTIMIZERS = Registry("optimizer", "cnnbench.optim.optimizers")
SCHEDULES = Registry("schedule", "cnnbench.optim.schedules", ScheduleSpec)
COMPRESSIONS = Registry("compression", "cnnbench.compression.stages", CompressionSpec)


def model_spec(name: str, **options: Any) -> ModelSpec:
    """Returns the validated `model` of a recipe.

    Args:
        name: the network's name.
        options: its options and those of every network, such as `weights`.
    """
    spec = MODELS.spec(name, **options)
    assert isinstance(spec, ModelSpec)  # the base of the registry
    return spec


def min_size(model: Spec) -> int:
    """Returns the smallest image height and width, in pixels, that a model accepts."""
    least = MODELS.get(model.name).facts["min_size"]
    return int(least(model.options()) if callable(least) else least)


def kind_of(augmentation: Spec) -> AugmentationKind:
    """Returns what an augmentation operates on; cnnbench.data.augment documents the kinds."""
    kind: AugmentationKind = AUGMENTATIONS.get(augmentation.name).facts.get("kind", "batch")
    return kind


def excess(augmentation: Spec, shape: Sequence[int]) -> tuple[str, int] | None:
    """Returns the option of an augmentation that is too large for the images, and its limit.

    Args:
        augmentation: an entry of a recipe's `augment`.
        shape: (height, width, …) of the images in pixels.

    Returns:
        The option's name and its largest allowed value; None if no option is too large.
    """
    most = AUGMENTATIONS.get(augmentation.name).facts.get("most")
    if most is None:
        return None
    options = augmentation.options()
    option, limit = most(options, min(shape[:2]))
    return (option, limit) if options[option] > limit else None


def input_shape(data: DataSpec, stored: tuple[int | None, int | None, int]) -> tuple[int, int, int]:
    """Returns the (height, width, channels) of the network's input.

    Args:
        data: a recipe's `data`.
        stored: (height, width, channels) of the stored images; None where sizes vary.

    Raises:
        UsageError: the stored images vary in size, and the recipe sets no `image_size`.
    """
    height, width, channels = stored
    if data.image_size:
        height = width = data.image_size
    if height is None or width is None:
        raise UsageError(
            f"{data.name} has images of different sizes",
            key="data.image_size",
            allowed="must be set",
        )
    if data.color is not None:
        channels = 1 if data.color == "grey" else 3
    return height, width, channels
