"""Multi-threaded reading of examples by position, and evaluation batches."""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cnnbench.data.examples import ArraySource, Examples
from cnnbench.data.preprocess import fit, short_side
from cnnbench.registry.kinds import AUGMENTATIONS, DataSpec
from cnnbench.registry.registry import Spec

# Batches prefetched while the network computes.
AHEAD = 3
# Images, (batch, height, width, channels) uint8, and targets, (batch, …).
Batch = tuple[np.ndarray, np.ndarray]


def evaluation_batches(
    examples: Examples, data: DataSpec, size: tuple[int, int], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields (images, targets, count), with every example once, in order.

    The last batch is padded with copies of its first example so that all batches have one shape;
    only the first `count` examples of a batch are real.
    """
    read = batch_reader(examples, data, size, (), 0)
    starts = iter(range(0, len(examples), batch_size))
    pending: collections.deque[Callable[[], Batch]] = collections.deque()
    while True:
        for start in itertools.islice(starts, AHEAD - len(pending)):
            pending.append(read(np.arange(start, min(start + batch_size, len(examples))), 0))
        if not pending:
            return
        images, targets = pending.popleft()()
        count = len(targets)
        rows = np.where(np.arange(batch_size) < count, np.arange(batch_size), 0)
        yield images[rows], targets[rows], count


def first_images(
    examples: Examples, data: DataSpec, size: tuple[int, int], count: int
) -> np.ndarray:
    """Returns the images of the first examples, not augmented.

    Args:
        examples: at least one.
        data: how images are fitted to `size`.
        size: height and width in pixels.
        count: number of images; if there are fewer examples, all are returned.

    Returns:
        (count, height, width, channels) uint8.
    """
    some = examples.take(slice(count))
    ((images, _, _),) = evaluation_batches(some, data, size, len(some))
    return images


def batch_reader(
    examples: Examples, data: DataSpec, size: tuple[int, int], crops: Iterable[Spec], seed: int
) -> Callable[[np.ndarray, int], Callable[[], Batch]]:
    """Returns a function that starts reading the examples at given positions, for an epoch.

    It returns at once; calling its result waits for the batch.
    """
    source, crops = examples.source, tuple(crops)
    keeps_size = not crops and short_side(data, size) == max(size)
    if isinstance(source, ArraySource) and keeps_size and source.images.shape[1:3] == size:

        def gather(positions: np.ndarray, epoch: int) -> Callable[[], Batch]:
            rows = examples.indices[positions]
            return lambda: (source.images[rows], source.targets[rows])

        return gather

    def read_one(position: int, epoch: int) -> tuple[np.ndarray, Any]:
        image, target = source.read(int(examples.indices[position]))
        for place, crop in enumerate(crops):
            random = random_at(seed, 2**33 + place, position, epoch)
            image = AUGMENTATIONS.build(crop, image, size, random)
        return (image if crops else fit(image, data, size)), target

    pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "cnnbench-read")

    def submit(positions: np.ndarray, epoch: int) -> Callable[[], Batch]:
        futures = [pool.submit(read_one, int(position), epoch) for position in positions]

        def wait() -> Batch:
            pixels, targets = zip(*(future.result() for future in futures), strict=True)
            return np.stack(pixels), np.stack(targets)

        return wait

    return submit


def random_at(seed: int, *counter: int) -> np.random.Generator:
    """Returns the random generator of a seed and up to three numbers, independent of any other."""
    # Drawing advances the first word of the counter.
    words = (0, *counter, 0, 0)[:4]
    return np.random.Generator(np.random.Philox(key=seed, counter=words))
