"""Training, validation and test examples of a data set."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cnnbench.data.examples import ArraySource, Dataset, Examples
from cnnbench.data.images import BadImageError
from cnnbench.errors import DataError, UsageError
from cnnbench.registry.kinds import DataSpec


@dataclass(frozen=True)
class Splits:
    """What a run trains and validates on, after the recipe's limit, validation and bad images.

    skipped, skipped_in_validation: the names of images that cannot be decoded, where the recipe
    says to skip them.
    """

    train: Examples
    validation: Examples | None
    skipped: tuple[str, ...]
    skipped_in_validation: tuple[str, ...] = ()


def training_splits(dataset: Dataset, data: DataSpec) -> Splits:
    """Returns the training examples and those carved out, or given, for validation.

    A data set's own validation split goes before the recipe's share of the training split. Which
    examples are carved out does not depend on the recipe's seed, so that runs compare.

    Raises:
        UsageError: the validation split leaves nothing to train on.
    """
    train = dataset.split("train").shuffled()
    if data.limit:
        train = train.take(slice(data.limit))
    validation = None
    if "validation" in dataset.sources:
        validation = dataset.split("validation").shuffled().take(slice(data.limit))
    elif data.validation:
        share = isinstance(data.validation, float)
        count = round(data.validation * len(train)) if share else int(data.validation)
        if not 0 < count < len(train):
            raise UsageError(
                f"keeps {count} of {len(train)} examples",
                key="data.validation",
                allowed=f"1 to {len(train) - 1}",
            )
        validation, train = train.take(slice(count)), train.take(slice(count, None))
    train, skipped = _readable(train, data)
    if validation is None:
        return Splits(train, None, skipped)
    validation, skipped_in_validation = _readable(validation, data)
    return Splits(train, validation, skipped, skipped_in_validation)


def evaluation_examples(
    dataset: Dataset, data: DataSpec, split: str
) -> tuple[Examples, tuple[str, ...]]:
    """Returns the examples of "test" or "validation" to measure on, and the names of bad images.

    Raises:
        UsageError: the recipe keeps no validation examples.
    """
    if split == "test":
        return _readable(dataset.split("test").shuffled().take(slice(data.limit)), data)
    splits = training_splits(dataset, data)
    if splits.validation is None:
        raise UsageError("the recipe keeps no validation split", allowed="evaluate on --split test")
    return splits.validation, splits.skipped_in_validation


def _readable(examples: Examples, data: DataSpec) -> tuple[Examples, tuple[str, ...]]:
    """Leaves out the images that cannot be decoded, where the recipe says so, and names them."""
    if data.on_bad_image == "fail" or isinstance(examples.source, ArraySource):
        return examples, ()

    def is_good(index: int) -> bool:
        try:
            examples.source.read(int(index))
        except BadImageError:
            return False
        return True

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        good = np.fromiter(pool.map(is_good, examples.indices), bool, len(examples))
    bad = examples.indices[~good]
    if not good.any():
        raise DataError(
            f"none of {len(examples)} images can be decoded",
            where=examples.source.name(int(bad[0])),
        )
    return examples.take(good), tuple(sorted(examples.source.name(int(index)) for index in bad))
