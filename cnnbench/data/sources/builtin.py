"""Data sets that need no files: scikit-learn's digits, and synthetic images."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from cnnbench.data.examples import ArraySource, Dataset
from cnnbench.data.open import Access
from cnnbench.errors import UsageError
from cnnbench.registry.kinds import DATASETS, DataSpec
from cnnbench.registry.limits import Side

Shape = Annotated[list[Side], Field(min_length=3, max_length=3)]


# Limit of synthetic images, which are held in memory.
SYNTHETIC_BYTES = 8 * 1024**3


@DATASETS.register("digits", train_examples=1_437, classes=10, shape=(8, 8, 1))
def digits(data: DataSpec, access: Access) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels: 1,437 for training, 360 for testing."""

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
    """Synthetic images of noisy stripes, one angle per class, for trying things out."""
    classes = data.classes or 10
    if shape[2] not in (1, 3):
        raise UsageError(f"{shape[2]} channels", key="data.shape", allowed="must be 1 or 3")
    if (size := examples * math.prod(shape)) > SYNTHETIC_BYTES:
        raise UsageError(
            f"{examples:,} images of data.shape take {size:,} bytes",
            key="data.examples",
            allowed=f"at most {SYNTHETIC_BYTES:,} bytes",
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
