"""The stages that a recipe's `compress` names, and what each does to a network and its training.

What a stage does to the network itself is told in a record, plain JSON, from which the network is
built again without the weights; a run keeps the records of all its stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from cnnbench.registry.kinds import COMPRESSIONS
from cnnbench.registry.limits import Factor, Fraction, NonNegative, PositiveInt, Rate
from cnnbench.registry.registry import Spec

# Training images that the first ranges of activations are taken from.
CALIBRATED = 500

Record = dict[str, Any]


class Stage:
    """A stage of compression; by default it leaves the network as it is."""

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Returns what becomes of a trained network, its values with it, and the record of that."""
        return model, {}

    def rebuild(self, model: Any, record: Record) -> Any:
        """Does to a network without values what `begin` did when it made the record."""
        return model

    def initialize(self, model: Any, images: Callable[[int], Any]) -> None:
        """Sets what is to be known of training images.

        Args:
            model: that has the weights of the stage's beginning.
            images: returns as many normalised images as it is given a number, or all if there are
                fewer, (examples, height, width, channels) float32.
        """


@dataclass(frozen=True)
class Distillation(Stage):
    """What `distill` says."""

    teacher: str
    temperature: float
    share: float
    hints: float


@dataclass(frozen=True)
class Pruning(Stage):
    """What `prune` says."""

    sparsity: float
    pattern: Literal["unstructured", "2:4"]
    scope: Literal["layer", "global"]
    begin_at: float
    end_at: float
    every: int

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Leaves the network as it is; the record has the sparsity that it begins with."""
        from cnnbench.compression.prune import sparsity_of

        initial, _ = sparsity_of(model)
        return model, {"initial": initial}


@dataclass(frozen=True)
class FilterPruning(Stage):
    """What `prune_filters` says."""

    macs: float
    divisor: int

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Removes filters until so many of the multiply-accumulates are left."""
        from cnnbench.compression.filters import thin

        widths, thinner = thin(model, self.macs, divisor=self.divisor)
        return thinner, {"widths": widths}

    def rebuild(self, model: Any, record: Record) -> Any:
        """Returns a network with as many filters."""
        from cnnbench.compression import filters

        return filters.rebuild(model, record["widths"])


@dataclass(frozen=True)
class Quantization(Stage):
    """What `qat` says."""

    bits: int

    def begin(self, model: Any) -> tuple[Any, Record]:
        """Folds batch norms and puts fake quantization after each operation."""
        return self.rebuild(model, {}), {}

    def rebuild(self, model: Any, record: Record) -> Any:
        """Does the same: folding and quantizing need no record."""
        from cnnbench.compression.quantize import fake_quantized

        return fake_quantized(model, bits=self.bits)

    def initialize(self, model: Any, images: Callable[[int], Any]) -> None:
        """Sets the ranges of activations by some images."""
        from cnnbench.compression.quantize import calibrate

        some = images(CALIBRATED)
        calibrate(model, [some[i : i + 100] for i in range(0, len(some), 100)])


@COMPRESSIONS.register("distill")
def distill(
    *,
    teacher: str,
    temperature: Annotated[float, Field(gt=0, le=1000)] = 4.0,
    share: Fraction = 0.9,
    hints: NonNegative = 0.0,
) -> Distillation:
    """Learns from a teacher's answers to the images that the network sees (Hinton et al. 2015).

    Args:
        teacher: a run directory, the name of a recipe (its newest finished run), or a preset.
        temperature: that both networks' logits are divided by.
        share: of the teacher's answers in the loss, temperature**2 * KL(teacher, student); the
            labels have the rest.
        hints: weight of the mean squared difference between the last feature maps of each size, the
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
    """Sets the smallest weights to zero, more and more of them (Zhu & Gupta 2017, equation 1).

    Args:
        sparsity: share of the weights of kernels that are zero at the end.
        pattern: "2:4" leaves two of every four input channels, for a sparsity of 0.5; kernels whose
            number of them is no multiple of four stay as they are.
        scope: whether each kernel has that share of zeros, or all together.
        begin: share of the stage's steps after which it begins.
        end: share of the stage's steps after which nothing more is set to zero.
        every: steps after which weights are chosen anew; a tenth of the way where that is less.
    """
    return Pruning(sparsity, pattern, scope, begin, end, every)


@COMPRESSIONS.register("prune_filters", needs_weights=True)
def prune_filters(
    *,
    macs: Factor,
    divisor: Annotated[int, Field(ge=1, le=256)] = 16,
) -> FilterPruning:
    """Removes whole filters, the smallest first, and trains what is left (Li et al. 2017).

    Args:
        macs: share of the multiply-accumulates that may be left.
        divisor: of the number of filters that are left in a layer that loses some.
    """
    return FilterPruning(macs, divisor)


@COMPRESSIONS.register("qat", needs_weights=True)
def qat(*, bits: Literal[8] = 8) -> Quantization:
    """Trains with weights and activations rounded to integers (Jacob et al. 2018).

    Batch norms are folded into the convolutions before them, as in the network that is exported.
    """
    return Quantization(bits)


def build_stage(spec: Spec) -> Any:
    """Returns the stage that a recipe names, of the class that its kind of stage has."""
    return COMPRESSIONS.build(spec)


def rebuild(model: Any, records: Sequence[Record]) -> Any:
    """Does to a new network what the stages of a run did to its own, but for the values.

    Args:
        model: as `build_model` returns it.
        records: the run's, each with the stage's spec as "stage".
    """
    for record in records:
        spec = COMPRESSIONS.spec_type(record["stage"]["name"]).model_validate(record["stage"])
        model = build_stage(spec).rebuild(model, record)
    return model
