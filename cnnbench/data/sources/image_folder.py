"""A folder of images, with one folder per split and one per class in each."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cnnbench.data import survey
from cnnbench.data.examples import REMOVED, Dataset, FileSource
from cnnbench.data.open import Access
from cnnbench.data.preprocess import reading
from cnnbench.data.sources.folder_walk import Image, Walk, composed
from cnnbench.data.sources.repeats import repeated, same_folders
from cnnbench.errors import DataError, MissingDataError, shortened
from cnnbench.registry.imagenet import IMAGENET_MEAN, IMAGENET_STD
from cnnbench.registry.kinds import DATASETS, DataSpec
from cnnbench.registry.limits import NonEmpty
from cnnbench.system import files

# Names of the folders of each split; of several, the first is used. Case does not matter.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
# Categories of control characters, bytes that are not UTF-8, and ends of lines: exported files
# and tables have to hold the names of classes.
UNREADABLE = ("Cc", "Cs", "Zl", "Zp")
LAYOUT = "must contain train/ and test/ or val/, each with one folder per class"
# By split: its folder; its images by class.
Folders = Mapping[str, Path]
Found = Mapping[str, Mapping[str, Sequence[Image]]]


@DATASETS.register("image_folder", own_validation=True)
def image_folder(data: DataSpec, access: Access, *, path: NonEmpty) -> Dataset:
    """Your own images: train/ and test/ or val/, each with one folder per class."""
    root = files.expanded(path)
    if not os.path.lexists(root):
        hint = f"{LAYOUT}; if it was moved after the training, --data-path says where it is"
        raise MissingDataError("no such folder", where=str(root), allowed=hint)
    if not root.exists():
        raise MissingDataError("a link to nothing", where=str(root), allowed=LAYOUT)
    walk = Walk(root, skip_unreadable=data.on_bad_image == "skip")
    folders = _splits(walk)
    found = {split: _classes(walk, folder) for split, folder in folders.items()}
    _keep_places(found, folders, root, access.removed)
    classes = tuple(sorted(found["train"]))
    if len(classes) < 2:
        what = f"{len(classes)} classes: {_names(classes)}"
        raise DataError(what, where=str(folders["train"]), allowed="must be at least 2")
    for split, by_class in found.items():
        _check(folders[split], by_class, classes)
    channels = 1 if data.color == "grey" else 3
    options = reading(data, channels)

    def load(split: str) -> FileSource:
        pairs = [(f, i) for i, name in enumerate(classes) for f in found[split].get(name, ())]
        images, labels = zip(*pairs, strict=True)
        doubtful = [index for index, image in enumerate(images) if image.may_be_damaged]
        paths = [image.path for image in images]
        gone = [index for index, image in enumerate(images) if image.content == REMOVED]
        return FileSource(paths, np.array(labels, np.int32), options, doubtful, gone, root)

    def look() -> survey.Survey:
        by_class = itertools.chain.from_iterable(each.values() for each in found.values())
        every = list(itertools.chain.from_iterable(by_class))
        wide = [index for index, image in enumerate(every) if image.may_be_wide]
        paths = [image.path for image in every]
        return survey.look(paths.__getitem__, len(paths), wide, options["value_range"])

    listing = [
        f"{composed(image.path.relative_to(root))}:{image.content}"
        for by_class in found.values()
        for _, images in sorted(by_class.items())
        for image in images
    ]
    return Dataset(
        name=root.name,
        classes=classes,
        shape=(None, None, channels),
        sources={split: partial(load, split) for split in found},
        identity="\n".join(listing),
        mean=IMAGENET_MEAN if channels == 3 else None,
        std=IMAGENET_STD if channels == 3 else None,
        counts=dict(walk.counts),
        look=look,
        removed=access.removed,
        lists_files=True,
        notes=[
            _account(walk, folders, found),
            *_oddities(folders, found),
            *repeated(root, folders, found),
        ],
    )


def _splits(walk: Walk) -> dict[str, Path]:
    """Returns the folder of each split; counts the others."""
    there = walk.folders(walk.root)
    by_name: dict[str, Path] = {}
    for name in sorted(there, key=lambda name: (name != name.casefold(), name)):
        by_name.setdefault(name.casefold(), there[name])
    found = {
        split: next(by_name[name] for name in names if name in by_name)
        for split, names in SPLIT_FOLDERS.items()
        if not by_name.keys().isdisjoint(names)
    }
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    for folder in sorted(set(there.values()) - set(found.values())):
        walk.count("other_folders", folder)
    for split in ("train", "test"):
        if split not in found:
            others = f", not {_names(there, '/')}" if there else ""
            raise MissingDataError(
                f"no folder of {split} images", where=str(walk.root), allowed=f"{LAYOUT}{others}"
            )
    same_folders({folder.name: folder for split, folder in found.items() if split != "validation"})
    # In this order, because the data set's identity lists the files so.
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _classes(walk: Walk, folder: Path) -> dict[str, list[Image]]:
    """Returns the images of each class folder; names are in Unicode's form NFC."""
    loose = walk.counts["outside_classes"]
    found: dict[str, list[Image]] = {}
    folders = walk.folders(folder)
    if not folders:
        loose = walk.counts["outside_classes"] - loose
        flat = f"{loose} images, but no class folders" if loose else "no class folders"
        raise DataError(flat, where=str(folder), allowed="must have one folder per class")
    same_folders(folders)
    for name, path in folders.items():
        _must_be_below(folder, path)
        if any(unicodedata.category(each) in UNREADABLE for each in name):
            raise DataError(
                f"the name of the class folder {name!r} is not UTF-8 or has control characters",
                where=str(folder),
                allowed="rename it: the names of classes must be readable text",
            )
        if (key := unicodedata.normalize("NFC", name)) in found:
            raise DataError(
                f"two folders of class {key}, whose names differ in their Unicode form (NFC, NFD)",
                where=str(folder),
                allowed="move the images of one into the other",
            )
        found[key] = walk.images(path)
    return found


def _keep_places(
    found: Mapping[str, dict[str, list[Image]]], folders: Folders, root: Path, names: Sequence[str]
) -> None:
    """Enters files that are gone among those found, where they were."""
    for name in names:
        place = composed(Path(name))
        for split, folder in folders.items():
            if len(place.parts) > 2 and place.parts[0] == str(composed(folder.relative_to(root))):
                images = found[split].setdefault(place.parts[1], [])
                kept = [each for each in images if composed(each.path.relative_to(root)) != place]
                images[:] = [*kept, Image(root / name, REMOVED, may_be_wide=False)]
                images.sort(key=lambda image: composed(image.path).parts)


def _check(folder: Path, by_class: Mapping[str, Sequence[Image]], classes: Sequence[str]) -> None:
    """Raises if the classes of a split are not those of training, or one has no images."""
    if unknown := sorted(set(by_class) - set(classes)):
        alike = {_folded(name): name for name in classes}
        said = [
            f"{name} (train/ has {alike[_folded(name)]})" if _folded(name) in alike else name
            for name in unknown
        ]
        raise DataError(f"classes missing from train/: {_names(said)}", where=str(folder))
    if empty := sorted(name for name, images in by_class.items() if not images):
        there = Walk(folder, skip_unreadable=True)
        # On disk, the name may have another Unicode form.
        there.images(next(each for each in folder.iterdir() if composed(each).name == empty[0]))
        why = f"of {empty[0]}/ {there.summary()}" if there.counts else f"{empty[0]}/ is empty"
        raise DataError(f"classes without images: {_names(empty)}", where=str(folder), allowed=why)


def _account(walk: Walk, folders: Folders, found: Found) -> str:
    """Returns a line that says which files are used and which are left out."""
    used = [
        f"{sum(map(len, found[split].values())):,} of {folder.name}/ for {split}"
        for split, folder in folders.items()
    ]
    return f"images: {', '.join(used)}; {walk.summary()}"


def _oddities(folders: Folders, found: Found) -> list[str]:
    """Returns notes on classes that look like one, or that a split does not have."""
    classes = sorted(found["train"])
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_folded(name), []).append(name)
    several = [names for names in alike.values() if len(names) > 1]
    notes = [f"classes that differ only in case or spaces: {_names(each)}" for each in several]
    for split, by_class in found.items():
        if missing := [name for name in classes if name not in by_class]:
            notes.append(f"{folders[split]} has no images of {_names(missing)}")
    return notes


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _names(names: Sequence[str] | Mapping[str, object], end: str = "") -> str:
    """Lists some names."""
    return ", ".join(shortened(f"{name}{end}" for name in names))


def _must_be_below(folder: Path, entry: Path) -> None:
    """Raises if a class is a link to a parent folder, which would repeat images."""
    above = Path(os.path.realpath(folder))
    if Path(os.path.realpath(entry)) in (above, *above.parents):
        raise DataError("the class folder is a link to one of its parents", where=str(entry))
