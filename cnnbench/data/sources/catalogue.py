"""Data sets: one function each, from a recipe's `data` to a Dataset."""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from cnnbench.data import imagenet, tfds_source
from cnnbench.data.examples import ArraySource, Dataset, FileSource
from cnnbench.data.images import SUFFIXES
from cnnbench.errors import DataError, MissingDataError, UsageError
from cnnbench.parts import DATASETS, DataSpec

Side = Annotated[int, Field(ge=1, le=4096)]
Shape = Annotated[list[Side], Field(min_length=3, max_length=3)]

# Made-up images are held in memory.
SYNTHETIC_BYTES = 8 * 1024**3

# Of each end of an image file; see `_content`.
COMPARED_BYTES = 4096

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Access:
    """Where data sets lie, and whether a missing one may be downloaded."""

    data_dir: Path | None = None
    download: bool = True


def open_dataset(data: DataSpec, access: Access) -> Dataset:
    """Opens the data set that a recipe names.

    Raises:
        DataError: it is not there, damaged, or has another number of classes than the recipe says.
    """
    dataset: Dataset = DATASETS.get(data.name).build(data, access, **data.options())
    if data.classes and data.classes != len(dataset.classes):
        raise DataError(
            f"data.classes is {data.classes}, but {dataset.name} has {len(dataset.classes)} classes"
        )
    return dataset


def describe_dataset(data: DataSpec) -> Dataset | None:
    """Returns a data set without its examples, if the names of its classes are known without it."""
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


def _catalogue(builder: str, test_split: str, data: DataSpec, access: Access) -> Dataset:
    """A data set of the TFDS catalogue."""
    facts = DATASETS.get(data.name).facts
    found = tfds_source.dataset(
        builder,
        "train",
        test_split,
        access.data_dir,
        access.download,
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
) -> Dataset:
    """Any classification data set of the TFDS catalogue, by its builder's name."""
    return tfds_source.dataset(builder, train_split, test_split, access.data_dir, access.download)


@DATASETS.register("image_folder", own_validation=True)
def image_folder(data: DataSpec, access: Access, *, path: str) -> Dataset:
    """Your own images: train/ and test/ or val/, with a folder a class in each."""
    root = Path(path).expanduser()
    folders = {
        "train": _first(root, "train"),
        "validation": _first(root, "val", "validation"),
        "test": _first(root, "test", "val", "validation"),
    }
    if folders["validation"] == folders["test"]:
        del folders["validation"]
    for split, folder in folders.items():
        if folder is None and split != "validation":
            raise MissingDataError(
                f"no folder of {split} images",
                where=str(root),
                allowed="give it train/ and test/ or val/, with a folder a class in each",
            )
    found = {split: _scan(folder) for split, folder in folders.items() if folder}
    classes = tuple(sorted(found["train"]))
    if len(classes) < 2:
        raise DataError(
            f"{len(classes)} classes", where=str(folders["train"]), allowed="at least 2 folders"
        )
    for split, by_class in found.items():
        if strange := sorted(set(by_class) - set(classes)):
            raise DataError(
                f"classes that train/ has not: {', '.join(strange)}", where=str(folders[split])
            )
        if empty := sorted(name for name, files in by_class.items() if not files):
            raise DataError(
                f"classes without an image: {', '.join(empty)}", where=str(folders[split])
            )
    channels = 1 if data.color == "grey" else 3

    def load(split: str) -> FileSource:
        pairs = [(f, i) for i, name in enumerate(classes) for f in found[split].get(name, ())]
        paths, labels = zip(*pairs, strict=True)
        return FileSource(paths, np.array(labels, np.int32), channels)

    listing = [
        f"{file.relative_to(root)}:{_content(file)}"
        for by_class in found.values()
        for _, files in sorted(by_class.items())
        for file in files
    ]
    return Dataset(
        name=root.name,
        classes=classes,
        shape=(None, None, channels),
        sources={split: partial(load, split) for split in found},
        identity="\n".join(listing),
        mean=IMAGENET_MEAN if channels == 3 else None,
        std=IMAGENET_STD if channels == 3 else None,
    )


@DATASETS.register("digits", train_examples=1_437, classes=10, shape=(8, 8, 1))
def digits(data: DataSpec, access: Access) -> Dataset:
    """1,797 handwritten digits of 8x8 pixels from scikit-learn: 1,437 to train on, 360 to test."""

    def load() -> dict[str, ArraySource]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        loaded = load_digits()
        pixels = np.rint(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
        rows = np.arange(len(pixels))
        train, test = train_test_split(rows, test_size=360, random_state=0, stratify=loaded.target)
        labels = loaded.target.astype(np.int32)
        return {
            "train": ArraySource(pixels[train], labels[train]),
            "test": ArraySource(pixels[test], labels[test]),
        }

    return Dataset(
        name="digits",
        classes=tuple("0123456789"),
        shape=(8, 8, 1),
        sources={"train": lambda: load()["train"], "test": lambda: load()["test"]},
        identity="scikit-learn digits, 1437 + 360, random state 0",
        mean=(0.3053,),
        std=(0.3760,),
    )


@DATASETS.register("synthetic")
def synthetic(
    data: DataSpec,
    access: Access,
    *,
    examples: Annotated[int, Field(ge=2, le=10_000_000)] = 512,
    shape: Shape = [32, 32, 3],
) -> Dataset:
    """Made-up images of stripes, one angle a class, under noise; for trying things out."""
    classes = data.classes or 10
    if shape[2] not in (1, 3):
        raise UsageError(f"data.shape of {shape[2]} channels", allowed="1 or 3")
    if (size := examples * math.prod(shape)) > SYNTHETIC_BYTES:
        raise UsageError(
            f"data.examples of data.shape take {size:,} bytes",
            allowed=f"at most {SYNTHETIC_BYTES:,}",
        )

    def load(split: str) -> ArraySource:
        random = np.random.Generator(np.random.Philox(key={"train": 1, "test": 2}[split]))
        labels = (np.arange(examples) % classes).astype(np.int32)
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        pixels = np.empty((examples, *shape), np.uint8)
        for i, label in enumerate(labels):
            angle = np.pi * label / classes
            wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 0.8)
            noise = random.normal(0, 25, shape)
            pixels[i] = np.clip(128 + 80 * wave[..., None] + noise, 0, 255)
        return ArraySource(pixels, labels)

    return Dataset(
        name="synthetic",
        classes=tuple(f"stripes_{i}" for i in range(classes)),
        shape=(shape[0], shape[1], shape[2]),
        sources={"train": lambda: load("train"), "test": lambda: load("test")},
        identity=f"synthetic {classes} {examples} {shape}",
    )


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _scan(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of every class folder, sorted; hidden files are passed over."""
    return {
        entry.name: sorted(
            file
            for file in Path(entry.path).rglob("*")
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(entry.path).parts)
            and file.is_file()
        )
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".") and _is_below(folder, entry.path)
    }


def _content(file: Path) -> str:
    """Returns a file's size, and the CRC-32 of its first and last COMPARED_BYTES.

    Of an image of up to twice as many bytes any change shows. Of a larger one, which is not read
    whole for its cost, a change shows that alters its size, header or end, as encoding another
    picture does; one in the middle of an uncompressed file, or a flipped bit there, does not.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            checksum = zlib.crc32(opened.read(COMPARED_BYTES))
            opened.seek(max(COMPARED_BYTES, size - COMPARED_BYTES))
            return f"{size}:{zlib.crc32(opened.read(), checksum):08x}"
    except OSError as error:
        raise DataError(f"cannot read the image: {error.strerror}", where=str(file)) from None


def _is_below(folder: Path, name: str) -> bool:
    """Refuses a class that is a link to a folder above, which has the images in it again."""
    above = folder.resolve()
    if Path(name).resolve() in (above, *above.parents):
        raise DataError("the class is a link to a folder above it", where=name)
    return True
