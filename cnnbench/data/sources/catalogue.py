"""Data sets from the TFDS catalog."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated

from pydantic import Field

from cnnbench.data.examples import Dataset
from cnnbench.data.open import Access
from cnnbench.data.sources import imagenet, tfds_reader
from cnnbench.registry.imagenet import IMAGENET_MEAN, IMAGENET_STD
from cnnbench.registry.kinds import DATASETS, DataSpec


def _catalogue(builder: str, test_split: str, data: DataSpec, access: Access) -> Dataset:
    """A data set from the TFDS catalog."""
    facts = DATASETS.get(data.name).facts
    found = tfds_reader.dataset(
        builder,
        "train",
        test_split,
        data,
        access,
        mean=facts["mean"],
        std=facts["std"],
    )
    if names := facts.get("class_names"):
        found = replace(found, classes=tuple(names()[name] for name in found.classes))
    return found


DATASETS.add(
    "cifar10",
    partial(_catalogue, "cifar10", "test"),
    classes=10,
    shape=(32, 32, 3),
    train_examples=50_000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
DATASETS.add(
    "cifar100",
    partial(_catalogue, "cifar100", "test"),
    classes=100,
    shape=(32, 32, 3),
    train_examples=50_000,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
DATASETS.add(
    "fashion_mnist",
    partial(_catalogue, "fashion_mnist", "test"),
    classes=10,
    shape=(28, 28, 1),
    train_examples=60_000,
    mean=(0.2860,),
    std=(0.3530,),
)
DATASETS.add(
    "imagenet2012",
    partial(_catalogue, "imagenet2012", "validation"),
    classes=1000,
    shape=(None, None, 3),
    train_examples=1_281_167,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    class_names=imagenet.class_names,
)


@DATASETS.register("tfds")
def tfds(
    data: DataSpec,
    access: Access,
    *,
    builder: Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[A-Za-z0-9_.-]+)?(:[0-9.]+)?$")],
    train_split: str = "train",
    test_split: str = "test",
    image_key: str | None = None,
    label_key: str | None = None,
) -> Dataset:
    """Any image classification data set from the TFDS catalog, by its builder name."""
    keys = (image_key, label_key)
    return tfds_reader.dataset(builder, train_split, test_split, data, access, keys=keys)
