"""The sections of a recipe with fixed keys."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cnnbench.registry.kinds import TASKS
from cnnbench.registry.limits import Factor, NonNegative, Positive, PositiveInt, Share, Side
from cnnbench.tasks.task import task_named

# The score key of every task.
SCORES = tuple(task_named(name).score.key for name in TASKS.names())


class Section(BaseModel):
    """A section of the recipe with fixed keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Regularization(Section):
    """Penalties on the kernels of convolutions and dense layers, added to the loss."""

    l1: NonNegative = Field(default=0.0, description="l1 * sum |w|")
    l2: NonNegative = Field(
        default=0.0, description="l2 / 2 * sum w^2, the usual weight decay of SGD in papers"
    )


class EarlyStopping(Section):
    """Stops when a validation metric has not improved for `patience` epochs."""

    patience: PositiveInt = 10
    metric: Literal["loss", *SCORES] | None = Field(  # type: ignore[valid-type]  # at run time
        None, description="loss or the score of the task; null: the score"
    )
    min_delta: NonNegative = 0.0


class Runtime(Section):
    """TensorFlow settings of the training; values that are not set are chosen as by `auto`."""

    onednn: bool | None = Field(default=None, description="oneDNN kernels for convolutions on CPUs")
    xla: bool | None = Field(default=None, description="compile training steps with XLA")
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="threads per operation; null: one per core"
    )


class GradientClip(Section):
    """Clips the gradient of the whole batch; exactly one of norm and value is set."""

    norm: Positive | None = Field(
        None, description="largest global norm of all gradients (Pascanu et al. 2013, algorithm 1)"
    )
    value: Positive | None = Field(None, description="clips each element to [-value, value]")

    @model_validator(mode="after")
    def _one_bound(self) -> GradientClip:
        if (self.norm is None) == (self.value is None):
            raise ValueError("give exactly one of norm and value")
        return self


class Sam(Section):
    """Sharpness-aware minimization (Foret et al. 2021): two passes over each batch."""

    rho: Positive = Field(
        0.05, description="distance that weights move along the gradient before the second pass"
    )


class Lookahead(Section):
    """Slow weights that follow the fast ones (Zhang et al. 2019, algorithm 1)."""

    every: Annotated[int, Field(ge=1, le=10**6)] = Field(
        5, description="updates between moves of the slow weights (k in the paper)"
    )
    share: Share = Field(0.5, description="fraction of the way that they move (alpha in the paper)")


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


class Group(Section):
    """Weights with their own learning rate and weight decay."""

    match: Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)] = Field(
        description="regular expression to search in a weight's path, such as stem_norm/beta"
    )
    lr_scale: NonNegative = Field(1.0, description="multiplies optimizer.lr")
    weight_decay_scale: NonNegative = Field(
        1.0, description="multiplies optimizer.weight_decay, in addition to lr_scale"
    )


class ImageSize(Section):
    """Smaller training images in the first epochs (Tan & Le 2021, section 4)."""

    until: PositiveInt = Field(description="last epoch with this size")
    size: Side = Field(description="height and width in pixels")


class Train(Section):
    """How long to train, with which precision, and options around the optimizer.

    Exactly one of epochs, steps and examples is set.
    """

    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    examples: Annotated[int, Field(ge=1, le=10**15)] | None = None
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    strategy: Literal["auto", "one_device", "mirrored", "tpu"] = "auto"
    runtime: Literal["auto"] | Runtime = Field(
        "auto", description="auto: the fastest on this machine, measured before long trainings"
    )
    steps_per_call: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="training steps per call into TensorFlow"
    )
    deterministic: bool = Field(
        True, description="bit-identical results from the same seed on CPUs"
    )
    checkpoint_every: PositiveInt | Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}m$")] = Field(
        "10m", description="steps, or minutes such as 10m; also saved at the end of each epoch"
    )
    ema: Factor | None = Field(
        None,
        description="decay of the moving average of all weights, which is then validated, saved "
        "and exported; at most (1 + step) / (10 + step), so lower in the first steps",
    )
    gradient_clip: GradientClip | None = None
    accumulate: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description="gradient accumulation: parts that a batch is split into to save memory; one "
        "update per batch, but batch norm's statistics are updated by each part",
    )
    sam: Sam | None = None
    lookahead: Lookahead | None = None
    groups: list[Group] = Field([], description="each weight uses the first group that matches")
    layer_decay: Share = Field(
        1.0,
        description="factor of the learning rate from each stage of the network to the one below "
        "(Bao et al. 2022); 1 for the head",
    )
    image_sizes: list[ImageSize] = Field(
        [], description="smaller images for the first epochs; afterwards full-size images"
    )
    on_nan: Literal["stop", "rollback"] = Field(
        "stop",
        description="if a loss or weight is not finite: stop, or restore the last checkpoint and "
        "halve the learning rate, at most three times",
    )
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _one_duration(self) -> Train:
        given = [k for k in ("epochs", "steps", "examples") if getattr(self, k) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"found {found}: give exactly one of epochs, steps and examples")
        return self


class Init(Section):
    """The run that training starts from instead of random weights."""

    run: Annotated[str, Field(min_length=1)] = Field(
        description="run directory, or name of a recipe: its newest finished run below runs/"
    )


class Evaluation(Section):
    """Options of `cnnbench eval`; training, exports and `predict` ignore them."""

    tta: Literal["none", "flip", "flip_shift"] = Field(
        default="none",
        description="test-time augmentation: flip averages the outputs for an image and its "
        "mirror image; flip_shift gives half the weight to both shifted by one pixel either way",
    )


def total_steps(train: Train, steps_per_epoch: int, batch_size: int) -> int:
    """Returns the number of training steps, at least 1.

    Args:
        train: a recipe's `train`, with a duration in epochs, steps or examples.
        steps_per_epoch: training steps in an epoch.
        batch_size: images per step.
    """
    if train.steps is not None:
        return train.steps
    if train.examples is not None:
        return max(1, train.examples // batch_size)
    assert train.epochs is not None
    return max(1, round(train.epochs * steps_per_epoch))
