"""Batches: a training stream that starts at any step, and an evaluation pass that counts exactly.

What training sees at a step is a function of (seed, step) alone: the order of an epoch is a
permutation drawn from (seed, epoch), and every augmentation draws from (seed, its place in the
recipe, step, and place in the batch). So resuming is starting the stream at a later step.
"""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from cnnbench.data import images as geometry
from cnnbench.data.augment import Draw
from cnnbench.data.examples import ArraySource, Dataset, Examples
from cnnbench.data.images import BadImageError
from cnnbench.data.preprocess import COLOR_STATISTICS, Preprocess
from cnnbench.errors import CnnbenchError, DataError, UsageError
from cnnbench.lazy import tf
from cnnbench.parts import AUGMENTATIONS, DataSpec, excess, kind_of
from cnnbench.registry import Spec

# Batches that are read ahead while the network works.
AHEAD = 3

Batch = tuple[np.ndarray, np.ndarray]  # images (batch, height, width, channels) uint8, labels int32


@dataclass(frozen=True)
class Splits:
    """What a run trains and validates on, after the recipe's limit, validation and bad images.

    skipped, skipped_in_validation: the names of images that cannot be decoded, where the recipe
    says to skip them.
    """

    train: Examples
    validation: Examples | None
    skipped: tuple[str, ...]
    skipped_in_validation: tuple[str, ...] = ()


def training_splits(dataset: Dataset, data: DataSpec) -> Splits:
    """Returns the training examples and those carved out, or given, for validation.

    A data set's own validation split goes before the recipe's share of the training split. Which
    examples are carved out does not depend on the recipe's seed, so that runs compare.

    Raises:
        UsageError: the validation split leaves nothing to train on.
    """
    train = dataset.split("train").shuffled()
    if data.limit:
        train = train.take(slice(data.limit))
    validation = None
    if "validation" in dataset.sources:
        validation = dataset.split("validation").shuffled().take(slice(data.limit))
    elif data.validation:
        share = isinstance(data.validation, float)
        count = round(data.validation * len(train)) if share else int(data.validation)
        if not 0 < count < len(train):
            raise UsageError(
                f"data.validation keeps {count} examples", allowed=f"1 to {len(train) - 1}"
            )
        validation, train = train.take(slice(count)), train.take(slice(count, None))
    train, skipped = _readable(train, data)
    if validation is None:
        return Splits(train, None, skipped)
    validation, skipped_in_validation = _readable(validation, data)
    return Splits(train, validation, skipped, skipped_in_validation)


def evaluation_examples(
    dataset: Dataset, data: DataSpec, split: str
) -> tuple[Examples, tuple[str, ...]]:
    """Returns the examples of "test" or "validation" to measure on, and the names of bad images.

    Raises:
        UsageError: the recipe keeps no validation examples.
    """
    if split == "test":
        return _readable(dataset.split("test").shuffled().take(slice(data.limit)), data)
    splits = training_splits(dataset, data)
    if splits.validation is None:
        raise UsageError("the recipe keeps no validation split", allowed="evaluate on --split test")
    return splits.validation, splits.skipped_in_validation


def preprocess(dataset: Dataset, data: DataSpec) -> Preprocess:
    """Returns the colour conversion and normalisation of a recipe's data.

    Raises:
        UsageError: the recipe's mean or std is not one value per channel.
    """
    stored = "grey" if dataset.shape[2] == 1 else "rgb"
    color = data.color or stored
    mean, std = COLOR_STATISTICS[color]
    if dataset.mean and dataset.std and color in (stored, "rgb"):
        channels = len(mean)
        mean, std = ((published * channels)[:channels] for published in (dataset.mean, dataset.std))
    mean, std = tuple(data.mean or mean), tuple(data.std or std)
    channels = len(COLOR_STATISTICS[color][0])
    if len(mean) != channels or len(std) != channels:
        raise UsageError(
            f"data.mean of {len(mean)} values and data.std of {len(std)}",
            allowed=f"one per channel: {channels}",
        )
    return Preprocess(color, mean, std)


def fit(image: np.ndarray, data: DataSpec, size: tuple[int, int]) -> np.ndarray:
    """Brings an image of any size to the network's: scales its short side and crops the centre."""
    short = short_side(data, size)
    if image.shape[:2] == size and short == max(size):
        return image
    return geometry.centre_crop(image, short, size)


def short_side(data: DataSpec, size: tuple[int, int]) -> int:
    """Returns the pixels that the short side of an image is scaled to before the centre crop."""
    return max(data.resize_short or 0, *size)


class TrainingStream:
    """Endless batches of augmented training examples, from any step on.

    An epoch is as many whole batches as there are; the rest waits for another permutation.

    Raises:
        UsageError: the batch is larger than the data set, or an augmentation than the images.
    """

    def __init__(
        self,
        examples: Examples,
        data: DataSpec,
        size: tuple[int, int],
        augment: Sequence[Spec],
        seed: int,
        classes: int,
    ):
        for spec in augment:
            if found := excess(spec, size):
                option, most = found
                what = f"{spec.name} with {option} {spec.options()[option]}"
                raise UsageError(what, allowed=f"at most {most} for images of {size} pixels")
        if len(examples) < data.batch_size:
            raise UsageError(
                f"data.batch_size of {data.batch_size}",
                allowed=f"at most the {len(examples)} examples there are to train on",
            )
        self.steps_per_epoch = len(examples) // data.batch_size
        self.failure: CnnbenchError | None = None
        self._batch_size, self._seed, self._classes = data.batch_size, seed, classes
        crops = [spec for spec in augment if kind_of(spec) == "crop"]
        self._augment = [spec for spec in augment if spec not in crops]
        self._mixes = any(kind_of(spec) == "mix" for spec in augment)
        self._read = _reader(examples, data, size, crops, seed)
        channels = self._read(np.zeros(1, int), 0)()[0].shape[-1]
        self._shape = (data.batch_size, *size, channels)
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: _random(seed, epoch).permutation(len(examples))
        )

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Returns (images uint8, labels) of every step from `first_step` on.

        Labels are (batch,) int32 or, where the recipe mixes images, (batch, classes) float32.
        """
        # No data set of a generator: TensorFlow then has the C library give back every freed block
        # of memory at once, and each training step asks for all of them again.
        read, types = self._reading(), (tf.uint8, tf.int32, tf.int64)

        def batch(step: Any) -> tuple[Any, ...]:
            images, labels, positions = tf.numpy_function(read, [step], types)
            images.set_shape(self._shape)
            for each in (labels, positions):
                each.set_shape(self._shape[:1])
            return images, labels, positions, step

        steps = tf.data.Dataset.range(first_step, tf.int64.max)
        batches = steps.map(batch).map(self.augmented, tf.data.AUTOTUNE, deterministic=True)
        return batches.prefetch(AHEAD)

    def positions(self, step: int) -> tuple[int, np.ndarray]:
        """Returns the epoch of a step, and which of the training examples its batch has."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self._batch_size
        return epoch, self._permutation(epoch)[start : start + self._batch_size]

    def batch(self, positions: np.ndarray, epoch: int) -> Batch:
        """Reads some training examples, cropped as in an epoch but not augmented."""
        return self._read(positions, epoch)()

    def augmented(self, images: Any, labels: Any, positions: Any, step: Any) -> tuple[Any, Any]:
        """Augments a batch as at a step, after any crop; see `dataset`."""
        if self._mixes:
            labels = tf.one_hot(labels, self._classes)
        for place, spec in enumerate(self._augment):
            kind = kind_of(spec)
            if kind == "image":
                work = partial(self._one_by_one, spec, place)
                images = tf.ensure_shape(
                    tf.numpy_function(work, [images, step], tf.uint8), self._shape
                )
                continue
            key = int(_random(self._seed, 2**32 + place).integers(2**62))
            seed = tf.stack([tf.constant(key, tf.int64), step])
            draw = Draw(seed, key, positions, step // self.steps_per_epoch)
            if kind == "mix":
                images, labels = AUGMENTATIONS.build(spec, images, labels, draw)
            else:
                images = AUGMENTATIONS.build(spec, images, draw)
        return images, labels

    def _one_by_one(self, spec: Spec, place: int, images: np.ndarray, step: int) -> np.ndarray:
        """Augments each image of a batch by itself."""
        randoms = (_random(self._seed, 2**34 + place, int(step), i) for i in range(len(images)))
        entry, options = AUGMENTATIONS.get(spec.name), spec.options()
        changed = (
            entry.build(image, random, **options)
            for image, random in zip(images, randoms, strict=False)
        )
        return np.stack(list(changed))

    def _reading(self) -> Callable[[int], tuple[np.ndarray, ...]]:
        """Returns a function that reads the batch of a step, and starts with those after it.

        It returns the images, labels and positions of the examples, int64.
        """
        pending: collections.deque[tuple[int, np.ndarray, Callable[[], Batch]]]
        pending = collections.deque()

        def read(step: int) -> tuple[np.ndarray, ...]:
            if pending and pending[0][0] != step:  # the data set is gone through once more
                pending.clear()
            for following in range(step + len(pending), step + AHEAD):
                epoch, positions = self.positions(following)
                pending.append((following, positions, self._read(positions, epoch)))
            _, positions, wait = pending.popleft()
            try:
                return *wait(), positions.astype(np.int64)
            except CnnbenchError as error:  # TensorFlow would pass on its text alone
                self.failure = error
                raise

        return read


def evaluation_batches(
    examples: Examples, data: DataSpec, size: tuple[int, int], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields (images, labels, count) of every example once, in order.

    The last batch is filled up with copies of its first example, so that all have one shape; only
    the first `count` examples of a batch are to be counted.
    """
    read = _reader(examples, data, size, (), 0)
    starts = iter(range(0, len(examples), batch_size))
    pending: collections.deque[Callable[[], Batch]] = collections.deque()
    while True:
        for start in itertools.islice(starts, AHEAD - len(pending)):
            pending.append(read(np.arange(start, min(start + batch_size, len(examples))), 0))
        if not pending:
            return
        images, labels = pending.popleft()()
        count = len(labels)
        rows = np.where(np.arange(batch_size) < count, np.arange(batch_size), 0)
        yield images[rows], labels[rows], count


def _reader(
    examples: Examples, data: DataSpec, size: tuple[int, int], crops: Iterable[Spec], seed: int
) -> Callable[[np.ndarray, int], Callable[[], Batch]]:
    """Returns a function that starts to read the examples at some positions of an epoch.

    What it returns waits for them.
    """
    source, crops = examples.source, tuple(crops)
    as_they_are = not crops and short_side(data, size) == max(size)
    if isinstance(source, ArraySource) and as_they_are and source.images.shape[1:3] == size:

        def gather(positions: np.ndarray, epoch: int) -> Callable[[], Batch]:
            rows = examples.indices[positions]
            return lambda: (source.images[rows], source.labels[rows])

        return gather

    def one(position: int, epoch: int) -> tuple[np.ndarray, int]:
        image, label = source.read(int(examples.indices[position]))
        for place, crop in enumerate(crops):
            random = _random(seed, 2**33 + place, position, epoch)
            image = AUGMENTATIONS.build(crop, image, size, random)
        return (image if crops else fit(image, data, size)), label

    pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "cnnbench-read")

    def submit(positions: np.ndarray, epoch: int) -> Callable[[], Batch]:
        futures = [pool.submit(one, int(position), epoch) for position in positions]

        def wait() -> Batch:
            pixels, labels = zip(*(future.result() for future in futures), strict=True)
            return np.stack(pixels), np.array(labels, np.int32)

        return wait

    return submit


def _readable(examples: Examples, data: DataSpec) -> tuple[Examples, tuple[str, ...]]:
    """Leaves out the images that cannot be decoded, where the recipe says so, and names them."""
    if data.on_bad_image == "fail" or isinstance(examples.source, ArraySource):
        return examples, ()

    def is_good(index: int) -> bool:
        try:
            examples.source.read(int(index))
        except BadImageError:
            return False
        return True

    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        good = np.fromiter(pool.map(is_good, examples.indices), bool, len(examples))
    bad = examples.indices[~good]
    if not good.any():
        raise DataError(
            f"none of {len(examples)} images can be decoded",
            where=examples.source.name(int(bad[0])),
        )
    return examples.take(good), tuple(sorted(examples.source.name(int(index)) for index in bad))


def _random(seed: int, *counter: int) -> np.random.Generator:
    # The first word of the counter is the one that drawing advances.
    words = (0, *counter, 0, 0)[:4]
    return np.random.Generator(np.random.Philox(key=seed, counter=words))
