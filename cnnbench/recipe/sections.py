"""The sections of a recipe that have fixed keys."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from cnnbench.registry.kinds import TASKS
from cnnbench.registry.limits import Factor, NonNegative, Positive, PositiveInt, Share, Side
from cnnbench.tasks.task import task_named

# The keys of the scores of all tasks.
SCORES = tuple(task_named(name).score.key for name in TASKS.names())


class Section(BaseModel):
    """A part of the recipe with fixed keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Regularization(Section):
    """Penalties on the kernels of convolutions and dense layers, added to the loss."""

    l1: NonNegative = Field(default=0.0, description="l1 * sum |w|")
    l2: NonNegative = Field(
        default=0.0, description="l2 / 2 * sum w^2: the papers' weight decay of SGD"
    )


class EarlyStopping(Section):
    """Stops when the validation metric has not improved for `patience` epochs."""

    patience: PositiveInt = 10
    metric: Literal["loss", *SCORES] = Field(  # type: ignore[valid-type]  # of the tasks there are
        "loss", description="loss, or the score of the task, as top1; by default the score"
    )
    min_delta: NonNegative = 0.0


class Runtime(Section):
    """How TensorFlow runs the training; what is not given is chosen as under `auto`."""

    onednn: bool | None = Field(
        default=None, description="oneDNN's kernels for convolutions on a CPU"
    )
    xla: bool | None = Field(default=None, description="compile each training step by XLA")
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="that one operation may use; null: one a core"
    )


class GradientClip(Section):
    """Bounds the gradient of the whole batch before the update; exactly one of norm and value."""

    norm: Positive | None = Field(
        None, description="of all gradients together (Pascanu et al. 2013, algorithm 1)"
    )
    value: Positive | None = Field(
        None, description="of each element, which stays between -value and value"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> GradientClip:
        if (self.norm is None) == (self.value is None):
            raise ValueError("give exactly one of norm and value")
        return self


class Sam(Section):
    """Sharpness-aware minimisation (Foret et al. 2021): two passes over each batch."""

    rho: Positive = Field(
        0.05, description="how far up the gradient the weights go before the second pass"
    )


class Lookahead(Section):
    """Slow weights that follow the fast ones (Zhang et al. 2019, algorithm 1)."""

    every: Annotated[int, Field(ge=1, le=10**6)] = Field(
        5, description="updates after which the slow weights move, the paper's k"
    )
    share: Share = Field(0.5, description="of the way that they move, the paper's alpha")


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


class Group(Section):
    """Weights with a learning rate and a weight decay of their own."""

    match: Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)] = Field(
        description="regular expression, searched in a weight's path such as stem_norm/beta"
    )
    lr_scale: NonNegative = Field(1.0, description="times optimizer.lr")
    weight_decay_scale: NonNegative = Field(
        1.0, description="times optimizer.weight_decay, which the learning rate multiplies too"
    )


class ImageSize(Section):
    """What training images are scaled to in its first epochs (Tan & Le 2021, section 4)."""

    until: PositiveInt = Field(description="the epoch that ends it")
    size: Side = Field(description="height and width in pixels")


class Train(Section):
    """How long to train, in which arithmetic, and what goes on around the optimizer.

    Exactly one of epochs, steps and examples is given.
    """

    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    examples: Annotated[int, Field(ge=1, le=10**15)] | None = None
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    strategy: Literal["auto", "one_device", "mirrored", "tpu"] = "auto"
    runtime: Literal["auto"] | Runtime = Field(
        "auto", description="auto: the fastest on this machine, measured before a long training"
    )
    steps_per_call: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="training steps that one call into TensorFlow runs"
    )
    deterministic: bool = Field(True, description="the same bits from the same seed, on a CPU")
    checkpoint_every: PositiveInt | Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}m$")] = Field(
        "10m", description="steps as an integer, or minutes as in 10m; besides each epoch"
    )
    ema: Factor | None = Field(
        None,
        description="decay of the moving average of all weights, which is then what is validated, "
        "kept and exported; less in the first steps: (1 + step) / (10 + step)",
    )
    gradient_clip: GradientClip | None = None
    accumulate: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description="parts in which a batch goes through the network, for less memory; their "
        "gradients make one update, their statistics for batch norm as many moves",
    )
    sam: Sam | None = None
    lookahead: Lookahead | None = None
    groups: list[Group] = Field([], description="the first that matches a weight counts for it")
    layer_decay: Share = Field(
        1.0,
        description="of the learning rate from each stage to the one before it (Bao et al. 2022); "
        "the head has the whole",
    )
    image_sizes: list[ImageSize] = Field(
        [], description="smaller images at first, each entry up to its epoch; then the whole size"
    )
    on_nan: Literal["stop", "rollback"] = Field(
        "stop",
        description="where a loss or weight is not finite: stop, or go back to the last "
        "checkpoint and halve the learning rate, three times at most",
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
    """What training starts from in place of random weights."""

    run: Annotated[str, Field(min_length=1)] = Field(
        description="a run directory, or the name of a recipe: its newest finished run below runs/"
    )


class Evaluation(Section):
    """How `cnnbench eval` asks the network; training, exports and `predict` do without."""

    tta: Literal["none", "flip", "flip_shift"] = Field(
        default="none",
        description="test-time augmentation, the mean answer over an image and its mirror; "
        "flip_shift: half the weight on both of them moved by one pixel either way",
    )


def total_steps(train: Train, steps_per_epoch: int, batch_size: int) -> int:
    """Returns how many steps a recipe trains, whichever unit it counts in; at least 1."""
    if train.steps is not None:
        return train.steps
    if train.examples is not None:
        return max(1, train.examples // batch_size)
    assert train.epochs is not None
    return max(1, round(train.epochs * steps_per_epoch))
