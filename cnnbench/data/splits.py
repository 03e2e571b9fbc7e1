"""Training, validation and test splits of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnbench.data.examples import ArraySource, Dataset, Examples, FileSource
from cnnbench.data.images import BadImageError
from cnnbench.errors import DataError, UsageError
from cnnbench.registry.kinds import DataSpec
from cnnbench.system.threads import for_each


@dataclass(frozen=True)
class Splits:
    """The examples that a run trains and validates on, with the recipe's options applied.

    Attributes:
        skipped: names, below the data set's folder, of the training images that cannot be
            decoded, if the recipe skips those.
        skipped_in_validation: names of such validation images.
    """

    train: Examples
    validation: Examples | None
    skipped: tuple[str, ...]
    skipped_in_validation: tuple[str, ...] = ()


def training_splits(dataset: Dataset, data: DataSpec) -> Splits:
    """Returns the training and validation examples of a recipe.

    The data set's own validation split takes precedence over one cut from the training split. The
    cut does not depend on the recipe's seed, so that runs are comparable.

    Raises:
        UsageError: the validation split is empty or leaves nothing to train on.
        DataError: no image of a split is left or can be decoded.
    """
    train = dataset.split("train").shuffled()
    if data.limit:
        train = train.take(slice(data.limit))
    validation = None
    if "validation" in dataset.sources:
        validation = dataset.split("validation").shuffled().take(slice(data.limit))
    elif data.validation:
        if isinstance(data.validation, float):
            count = round(data.validation * len(train))
        else:
            count = data.validation
        if not 0 < count < len(train):
            raise UsageError(
                f"takes {count} of {len(train)} examples",
                key="data.validation",
                allowed=f"1 to {len(train) - 1}",
            )
        validation, train = train.take(slice(count)), train.take(slice(count, None))
    train, skipped = _readable(_filled(train) if data.on_bad_image == "fail" else train, data)
    if validation is None:
        return Splits(train, None, skipped)
    validation, skipped_in_validation = _readable(validation, data)
    return Splits(train, validation, skipped, skipped_in_validation)


def to_inspect(dataset: Dataset, data: DataSpec, splits: Splits) -> list[Examples]:
    """Returns the examples to decode once, before they are needed: those used last come first.

    None, if the recipe skips bad images, which `training_splits` has decoded then, or if all are
    in memory. A test split of fixed size, which may be loaded as a whole, is not among them.
    """
    if data.on_bad_image == "skip" or isinstance(splits.train.source, ArraySource):
        return []
    test = None
    if None in dataset.shape:
        test, _ = evaluation_examples(dataset, data, "test")
    return [part for part in (test, splits.validation, splits.train) if part is not None]


def evaluation_examples(
    dataset: Dataset, data: DataSpec, split: str
) -> tuple[Examples, tuple[str, ...]]:
    """Returns the examples of the "test" or "validation" split, and the names of skipped images.

    Raises:
        UsageError: the recipe has no validation split.
        DataError: no image of the split is left or can be decoded.
    """
    if split == "test":
        return _readable(dataset.split("test").shuffled().take(slice(data.limit)), data)
    splits = training_splits(dataset, data)
    if splits.validation is None:
        raise UsageError("the recipe has no validation split", allowed="use --split test")
    return splits.validation, splits.skipped_in_validation


def _filled(examples: Examples) -> Examples:
    """Returns the examples with the file that follows, by name, in the place of each removed one.

    So the order and the number of the others stay what they were when a run started.
    """
    gone = np.isin(examples.indices, getattr(examples.source, "removed", ()))
    if not gone.any() or gone.all():
        return examples
    present = np.sort(examples.indices[~gone])
    following = np.searchsorted(present, examples.indices[gone]) % len(present)
    indices = examples.indices.copy()
    indices[gone] = present[following]
    return Examples(examples.source, indices)


def _readable(examples: Examples, data: DataSpec) -> tuple[Examples, tuple[str, ...]]:
    """Returns the examples to use, and the names of those skipped because they cannot be decoded.

    Unless the recipe skips bad images, all examples are returned without decoding them. Files that
    were removed are left out, and not named.
    """
    if isinstance(examples.source, FileSource) and len(examples.source.removed):
        left = examples.take(~np.isin(examples.indices, examples.source.removed))
        if len(examples) and not len(left):
            what = f"all {len(examples)} images of a split were removed"
            raise DataError(what, where=examples.source.name(int(examples.indices[0])))
        examples = left
    if data.on_bad_image == "fail" or isinstance(examples.source, ArraySource):
        return examples, ()

    good = np.ones(len(examples), bool)

    def check(place: int) -> None:
        try:
            examples.source.read(int(examples.indices[place]))
        except BadImageError:
            good[place] = False

    for_each(check, len(examples))
    bad = examples.indices[~good]
    if not good.any():
        raise DataError(
            f"none of {len(examples)} images can be decoded",
            where=examples.source.name(int(bad[0])),
        )
    names = sorted(examples.source.name_below(int(index)) for index in bad)
    return examples.take(good), tuple(names)
