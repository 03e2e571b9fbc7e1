"""Compression stages: the entries of a recipe's `compress`, and how each changes the network.

The change to the network is described by a record, plain JSON, from which the network can be
rebuilt without weights. A run stores the records of all its stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbench.registry.kinds import COMPRESSIONS
from cnnbench.registry.limits import Factor, Fraction, NonEmpty, NonNegative, PositiveInt, Rate
from cnnbench.registry.registry import Spec

# Training images used to initialize the ranges of activations.
CALIBRATED = 500

Record = dict[str, Any]


class Stage:
    """A compression stage; by default it does not change the network."""

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Returns the changed network with its weights, and the record of the change."""
        return model, {}

    def rebuild(self, model: Any, record: Record) -> Any:
        """Makes the change that `begin` recorded, on a network without trained weights."""
        return model

    def initialize(self, model: Any, images: Callable[[int], Any]) -> None:
        """Initializes state that depends on training images.

        Args:
            model: with its weights at the start of the stage.
            images: takes a number and returns that many normalized images, or all if there are
                fewer, (examples, height, width, channels) float32.
        """


@dataclass(frozen=True)
class Distillation(Stage):
    """Options of `distill`."""

    teacher: str
    temperature: float
    share: float
    hints: float


@dataclass(frozen=True)
class Pruning(Stage):
    """Options of `prune`."""

    sparsity: float
    pattern: Literal["unstructured", "2:4"]
    scope: Literal["layer", "global"]
    begin_at: float
    end_at: float
    every: int

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Returns the network unchanged, and records its initial sparsity."""
        from cnnbench.compression.prune import sparsity_of

        initial, _ = sparsity_of(model)
        return model, {"initial": initial}


@dataclass(frozen=True)
class FilterPruning(Stage):
    """Options of `prune_filters`."""

    macs: float
    divisor: int

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Removes filters until the fraction `macs` of the multiply-accumulates is left."""
        from cnnbench.compression.filters import thin

        widths, thinner = thin(model, self.macs, divisor=self.divisor)
        return thinner, {"widths": widths}

    def rebuild(self, model: Any, record: Record) -> Any:
        """Returns a network with the recorded numbers of filters."""
        from cnnbench.compression import filters

        return filters.rebuild(model, record["widths"])


@dataclass(frozen=True)
class Quantization(Stage):
    """Options of `qat`."""

    bits: int

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Folds batch norms and inserts fake quantization after each operation."""
        return self.rebuild(model, {}), {}

    def rebuild(self, model: Any, record: Record) -> Any:
        """Does the same as `begin`; folding and quantizing need no record."""
        from cnnbench.compression.quantize import fake_quantized

        return fake_quantized(model, bits=self.bits)

    def initialize(self, model: Any, images: Callable[[int], Any]) -> None:
        """Initializes the ranges of activations from CALIBRATED images."""
        from cnnbench.compression.quantize import calibrate

        some = images(CALIBRATED)
        calibrate(model, [some[i : i + 100] for i in range(0, len(some), 100)])


@COMPRESSIONS.register("distill")
def distill(
    *,
    teacher: NonEmpty,
    temperature: Annotated[float, Field(gt=0, le=1000)] = 4.0,
    share: Fraction = 0.9,
    hints: NonNegative = 0.0,
) -> Distillation:
    """Trains with a teacher's outputs as soft targets: distillation (Hinton et al. 2015).

    Args:
        teacher: a run directory, the name of a recipe (its newest finished run), or a preset.
        temperature: divides the logits of both networks.
        share: weight of the distillation loss, temperature**2 * KL(teacher, student); the loss of
            the labels has weight 1 - share.
        hints: weight of the mean squared error between the last feature maps of each size, the
            student's after a learned 1x1 convolution (Romero et al. 2015, equation 3).
    """
    return Distillation(teacher, temperature, share, hints)


@COMPRESSIONS.register("prune")
def prune(
    *,
    sparsity: Rate,
    pattern: Literal["unstructured", "2:4"] = "unstructured",
    scope: Literal["layer", "global"] = "layer",
    begin: Fraction = 0.0,
    end: Fraction = 0.75,
    every: PositiveInt = 50,
) -> Pruning:
    """Gradually sets the smallest weights to zero (Zhu & Gupta 2017, equation 1).

    Args:
        sparsity: fraction of the kernels' weights that are zero at the end.
        pattern: "2:4" keeps two weights of every four input channels, for a sparsity of 0.5;
            kernels whose number of input channels is not a multiple of four are not pruned.
        scope: whether each kernel has that sparsity ("layer"), or all together ("global").
        begin: fraction of the stage's steps after which pruning begins.
        end: fraction of the stage's steps after which no more weights are pruned.
        every: steps between updates of the masks; at most a tenth of the steps from begin to end.
    """
    return Pruning(sparsity, pattern, scope, begin, end, every)


@COMPRESSIONS.register("prune_filters", needs_weights=True)
def prune_filters(
    *,
    macs: Factor,
    divisor: Annotated[int, Field(ge=1, le=256)] = 16,
) -> FilterPruning:
    """Removes whole filters, the smallest first, and trains the rest (Li et al. 2017).

    Args:
        macs: largest fraction of the multiply-accumulates to keep.
        divisor: a layer that loses filters keeps a multiple of this number.
    """
    return FilterPruning(macs, divisor)


@COMPRESSIONS.register("qat", needs_weights=True)
def qat(*, bits: Literal[8] = 8) -> Quantization:
    """Trains with weights and activations rounded to integers (Jacob et al. 2018).

    Batch norms are folded into the convolutions before them, as in the network that is exported.
    """
    return Quantization(bits)


def build_stage(spec: Spec) -> Any:
    """Returns the stage that a recipe's spec describes."""
    return COMPRESSIONS.build(spec)


def rebuild(model: Any, records: Sequence[Record]) -> Any:
    """Applies the recorded changes of a run's stages to a new network, without their weights.

    Args:
        model: from `build_model`.
        records: of the run's stages, each with the stage's spec as "stage".
    """
    for record in records:
        spec = COMPRESSIONS.spec_type(record["stage"]["name"]).model_validate(record["stage"])
        model = build_stage(spec).rebuild(model, record)
    return model
