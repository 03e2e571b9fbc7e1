"""Examples by index: where images and targets come from, whatever a data set is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cnnbench.data import images

# Of the fixed order that limits and validation splits are cut from; no recipe's seed equals it.
ORDER_KEY = 2**40


class Source(Protocol):
    """Something that has an image and its target at each index."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """Returns the image, (height, width, channels) uint8, and its target.

        Targets are NumPy values of one dtype and shape, as the task of the data set says.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        ...

    def name(self, index: int) -> str:
        """Returns what the example is called in an error: its file or record."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Images of one size that lie in memory.

    images: (examples, height, width, channels) uint8; targets: (examples, …), as (examples,) int32
        labels.
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


@dataclass(frozen=True)
class FileSource:
    """Image files, each decoded when it is read."""

    paths: Sequence[Path]
    targets: np.ndarray
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """Reads and decodes one file."""
        return images.read(self.paths[index], self.channels), self.targets[index]

    def name(self, index: int) -> str:
        """Returns the file's path."""
        return str(self.paths[index])


@dataclass(frozen=True)
class Examples:
    """A choice of a source's examples, in a fixed order."""

    source: Source
    indices: np.ndarray

    @classmethod
    def all_of(cls, source: Source) -> Examples:
        """Returns every example of a source, in its own order."""
        return cls(source, np.arange(len(source)))

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: np.ndarray | slice) -> Examples:
        """Returns the examples at these positions."""
        return Examples(self.source, self.indices[positions])

    def shuffled(self) -> Examples:
        """Returns the examples in an order that is random but always the same."""
        return self.take(
            np.random.Generator(np.random.Philox(key=ORDER_KEY)).permutation(len(self))
        )


@dataclass(frozen=True)
class Dataset:
    """A data set: its classes, and its splits, each loaded when first asked for.

    shape: (height, width, channels) as stored; height and width are None where images differ.
    identity: names, versions, counts, sizes and checksums, as far as a look at the data set tells
        them cheaply; None of one that is not at hand.
    mean, std: published statistics per channel of values in 0-1, if there are any.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int | None, int | None, int]
    sources: Mapping[str, Callable[[], Source]]
    identity: str | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    _loaded: dict[str, Source] = field(default_factory=dict, compare=False, repr=False)

    def split(self, name: str) -> Examples:
        """Returns every example of the split "train", "validation" or "test"."""
        if name not in self._loaded:
            self._loaded[name] = self.sources[name]()
        return Examples.all_of(self._loaded[name])

    @property
    def fingerprint(self) -> str | None:
        """A SHA-256 of the identity."""
        if self.identity is None:
            return None
        return hashlib.sha256(self.identity.encode(errors="surrogateescape")).hexdigest()
