"""Images of a folder that are there more than once, in several splits or classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnbench.data.examples import REMOVED
from cnnbench.data.sources.folder_walk import Image
from cnnbench.errors import DataError

SAME = "have the size and the first and last bytes of"


def same_folders(folders: Mapping[str, Path]) -> None:
    """Raises if two of the folders are one, by a link.

    Args:
        folders: by name, those of splits or those of the classes of a split.

    Raises:
        DataError: two are one folder; its images would be taken for two things.
    """
    seen: dict[str, str] = {}
    for name, folder in folders.items():
        place = os.path.realpath(folder)
        if place in seen:
            raise DataError(
                f"{seen[place]}/ and {name}/ are one folder, by a link",
                where=str(folder.parent),
                allowed="each must have images of its own",
            )
        seen[place] = name


def repeated(
    root: Path,
    folders: Mapping[str, Path],
    found: Mapping[str, Mapping[str, Sequence[Image]]],
) -> list[str]:
    """Returns lines on images that look the same in two splits, or in two classes of one.

    Args:
        root: the data set's folder.
        folders: that of each split.
        found: by split and class, the images.
    """
    notes: list[str] = []
    earlier: list[tuple[str, dict[str, Path]]] = []
    for split, by_class in found.items():
        here: dict[str, Path] = {}
        labels: dict[str, str] = {}
        across: list[tuple[Path, Path]] = []
        name = folders[split].name
        for label, images in by_class.items():
            for image in images:
                if image.content == REMOVED or image.content.startswith("0:"):
                    continue
                first = here.setdefault(image.content, image.path)
                if labels.setdefault(image.content, label) != label:
                    across.append((image.path, first))
        if across:
            notes.append(_line(f"images of {name}/", across, "images of another class", root))
        for other, there in earlier:
            both = [(path, there[content]) for content, path in here.items() if content in there]
            if both:
                notes.append(_line(f"images of {name}/", both, f"images of {other}/", root))
        earlier.append((name, here))
    return notes


def _line(what: str, pairs: Sequence[tuple[Path, Path]], others: str, root: Path) -> str:
    one, other = (path.relative_to(root) for path in pairs[0])
    return f"{len(pairs):,} {what} {SAME} {others} (such as {one} and {other})"
