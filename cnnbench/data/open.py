"""Opens the data set that a recipe names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnbench.data.examples import Dataset
from cnnbench.errors import UsageError
from cnnbench.registry.kinds import DATASETS, DataSpec
from cnnbench.system import files
from cnnbench.tasks.task import task_of_data


@dataclass(frozen=True)
class Access:
    """Where data sets are stored, and whether a missing one may be downloaded.

    Attributes:
        data_dir: folder of prepared data sets; None: that of TFDS.
        download: whether a missing data set may be downloaded.
        data_path: where the images are, in place of the recipe's `data.path`; None: there. It is
            made absolute, and `~` in it is the home folder.
        removed: names below that path of files that are gone, and whose places are kept.
    """

    data_dir: Path | None = None
    download: bool = True
    data_path: Path | None = None
    removed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data_path is not None:
            object.__setattr__(self, "data_path", files.expanded(self.data_path).absolute())


def open_dataset(data: DataSpec, access: Access) -> Dataset:
    """Opens the data set that a recipe names.

    Raises:
        DataError: it is missing, damaged, or does not match the recipe.
        UsageError: `access` has a path, and the data set has none.
    """
    if access.data_path is not None:
        if "path" not in data.option_names:
            what = f"a path of the images is given, but {data.name} has none"
            raise UsageError(what, allowed="--data-dir says where prepared data sets are")
        data = data.model_copy(update={"path": str(access.data_path)})
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
