"""A folder of images, with one folder per split and one per class in each."""

from __future__ import annotations

import os
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from cnnbench.data.examples import Dataset, FileSource
from cnnbench.data.images import SUFFIXES
from cnnbench.data.open import Access
from cnnbench.errors import DataError, MissingDataError
from cnnbench.registry.imagenet import IMAGENET_MEAN, IMAGENET_STD
from cnnbench.registry.kinds import DATASETS, DataSpec

# Bytes read at each end of an image file; see `_content`.
COMPARED_BYTES = 4096


@DATASETS.register("image_folder", own_validation=True)
def image_folder(data: DataSpec, access: Access, *, path: str) -> Dataset:
    """Your own images: train/ and test/ or val/, each with one folder per class."""
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
                allowed="must contain train/ and test/ or val/, each with one folder per class",
            )
    found = {split: _scan(folder) for split, folder in folders.items() if folder}
    classes = tuple(sorted(found["train"]))
    if len(classes) < 2:
        raise DataError(
            f"{len(classes)} classes", where=str(folders["train"]), allowed="must be at least 2"
        )
    for split, by_class in found.items():
        if unknown := sorted(set(by_class) - set(classes)):
            raise DataError(
                f"classes missing from train/: {', '.join(unknown)}", where=str(folders[split])
            )
        if empty := sorted(name for name, files in by_class.items() if not files):
            raise DataError(
                f"classes without images: {', '.join(empty)}", where=str(folders[split])
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


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _scan(folder: Path) -> dict[str, list[Path]]:
    """Returns the image files of each class folder, sorted; hidden files are ignored."""
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

    Any change to a file of at most twice that size is detected. Larger files are not read whole,
    to save time: a change of their size, header or end is detected, which covers a re-encoded or
    replaced picture; a change in the middle of an uncompressed file, or a flipped bit there, is
    not.
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
    """Returns True; raises if a class is a link to a parent folder, which would repeat images."""
    above = folder.resolve()
    if Path(name).resolve() in (above, *above.parents):
        raise DataError("the class folder is a link to one of its parents", where=name)
    return True
