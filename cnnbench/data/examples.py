"""Indexed access to the images and targets of a data set, however it is stored."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cnnbench.data import images
from cnnbench.data.survey import Survey

# Key of the fixed shuffle from which limits and validation splits are cut; never a recipe's seed.
ORDER_KEY = 2**40
# What a data set's identity says of a removed file, whose place is kept, instead of its content.
REMOVED = "removed"


class Source(Protocol):
    """An indexed collection of images with their targets."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """Reads one example.

        Returns:
            The image, (height, width, channels) uint8, and its target, a NumPy value whose dtype
            and shape are the same for all examples and given by the task of the data set.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        ...

    def name(self, index: int) -> str:
        """Returns the example's name in error messages: its file or record."""
        ...

    def name_below(self, index: int) -> str:
        """Returns the example's name, without the place where the data set is stored."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Images of one size, held in memory.

    Attributes:
        images: (examples, height, width, channels) uint8.
        targets: (examples, …), e.g. (examples,) int32 labels.
    """

    images: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """Returns one image and its target."""
        return self.images[index], self.targets[index]

    def name(self, index: int) -> str:
        """Returns the example's number."""
        return f"example {index}"

    def name_below(self, index: int) -> str:
        """Returns the example's number."""
        return self.name(index)


@dataclass(frozen=True)
class FileSource:
    """Image files, decoded when they are read.

    Attributes:
        reading: the channels and options of `images.read`.
        doubtful: indices of the files that may be damaged; see `inspection.may_be_damaged`.
        removed: indices of the files that are gone, and whose places are kept.
        root: the data set's folder.
    """

    paths: Sequence[Path]
    targets: np.ndarray
    reading: Mapping[str, Any]
    doubtful: Sequence[int] = ()
    removed: Sequence[int] = ()
    root: Path = Path()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """Reads and decodes one file."""
        return images.read(self.paths[index], **self.reading), self.targets[index]

    def name(self, index: int) -> str:
        """Returns the file's path."""
        return str(self.paths[index])

    def name_below(self, index: int) -> str:
        """Returns the file's path below the data set's folder, in Unicode's form NFC."""
        return unicodedata.normalize("NFC", str(self.paths[index].relative_to(self.root)))


@dataclass(frozen=True)
class Examples:
    """A selection of a source's examples, in a fixed order."""

    source: Source
    indices: np.ndarray

    @classmethod
    def all_of(cls, source: Source) -> Examples:
        """Returns all examples of a source, in its own order."""
        return cls(source, np.arange(len(source)))

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: np.ndarray | slice) -> Examples:
        """Returns the examples at `positions`."""
        return Examples(self.source, self.indices[positions])

    def shuffled(self) -> Examples:
        """Returns the examples in a random order that is always the same."""
        random = np.random.Generator(np.random.Philox(key=ORDER_KEY))
        return self.take(random.permutation(len(self)))


@dataclass(frozen=True)
class Dataset:
    """A data set: its classes, and its splits, each loaded on first use.

    Attributes:
        shape: (height, width, channels) as stored; height and width are None if images differ in
            size.
        identity: names, versions, counts, sizes and checksums, as far as they can be read cheaply;
            None if the data set is not available.
        mean: published mean per channel, of values in [0, 1], or None.
        std: published standard deviation, likewise.
        counts: of a folder, entries by what became of them; see
            `cnnbench.data.sources.folder_walk`.
        look: looks at the pixels of some images; see `survey`.
        removed: names of files that are gone, and whose places are kept.
        lists_files: whether the identity is a list of files: lines of name:size:checksum.
        notes: what the user should know of which files are used, a line each.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    sources: Mapping[str, Callable[[], Source]]
    identity: str | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    look: Callable[[], Survey] = field(default=lambda: Survey(None), compare=False, repr=False)
    removed: Sequence[str] = ()
    lists_files: bool = False
    notes: list[str] = field(default_factory=list)
    _loaded: dict[str, Source] = field(default_factory=dict, compare=False, repr=False)

    def split(self, name: str) -> Examples:
        """Returns all examples of the split "train", "validation" or "test"."""
        if name not in self._loaded:
            self._loaded[name] = self.sources[name]()
        return Examples.all_of(self._loaded[name])

    @cached_property
    def survey(self) -> Survey:
        """What a look at some images found, which is taken when it is first asked for.

        Raises:
            UsageError: `data.value_range` must be set for these images.
        """
        return self.look()

    @property
    def fingerprint(self) -> str | None:
        """The SHA-256 of the identity; None without one."""
        if self.identity is None:
            return None
        return hashlib.sha256(self.identity.encode(errors="surrogateescape")).hexdigest()
