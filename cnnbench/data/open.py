"""Opens the data set that a recipe names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnbench.data.examples import Dataset
from cnnbench.registry.kinds import DATASETS, DataSpec
from cnnbench.tasks.task import task_of_data


@dataclass(frozen=True)
class Access:
    """Where data sets are stored, and whether a missing one may be downloaded."""

    data_dir: Path | None = None
    download: bool = True


def open_dataset(data: DataSpec, access: Access) -> Dataset:
    """Opens the data set that a recipe names.

    Raises:
        DataError: it is missing, damaged, or does not match the recipe.
    """
    dataset: Dataset = DATASETS.get(data.name).build(data, access, **data.options())
    task_of_data(data).check_data(data, dataset)
    return dataset


def describe_dataset(data: DataSpec) -> Dataset | None:
    """Returns a data set without its examples; None if its class names are not known in advance."""
    facts = DATASETS.get(data.name).facts
    if "class_names" not in facts:
        return None
    return Dataset(
        name=data.name,
        classes=tuple(facts["class_names"]().values()),
        shape=facts["shape"],
        sources={},
        identity=None,
        mean=facts["mean"],
        std=facts["std"],
    )
