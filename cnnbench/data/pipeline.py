"""Batches: a training stream that starts at any step, and an evaluation pass that counts exactly.

What training sees at a step is a function of (seed, step) alone: the order of an epoch is a
permutation drawn from (seed, epoch), and every augmentation draws from (seed, its place in the
recipe, step, and place in the batch). So resuming is starting the stream at a later step.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from cnnbench.backend.lazy import tf
from cnnbench.data.augment.batch import Draw
from cnnbench.data.examples import Examples
from cnnbench.data.reader import AHEAD, Batch, _random, _reader
from cnnbench.errors import CnnbenchError, UsageError
from cnnbench.registry.kinds import AUGMENTATIONS, DataSpec, excess, kind_of
from cnnbench.registry.registry import Spec


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
        mixable: Callable[[Any], Any],
    ):
        for place, spec in enumerate(augment):
            if found := excess(spec, size):
                option, most = found
                raise UsageError(
                    f"{spec.name} with {option} {spec.options()[option]}",
                    key=f"augment.{place}",
                    allowed=f"at most {most} for images of {size[0]}x{size[1]} pixels",
                )
        if len(examples) < data.batch_size:
            raise UsageError(
                f"{data.batch_size}",
                key="data.batch_size",
                allowed=f"at most the {len(examples)} examples there are to train on",
            )
        self.steps_per_epoch = len(examples) // data.batch_size
        self.failure: CnnbenchError | None = None
        self._batch_size, self._seed, self._mixable = data.batch_size, seed, mixable
        crops = [spec for spec in augment if kind_of(spec) == "crop"]
        self._augment = [spec for spec in augment if spec not in crops]
        self._mixes = any(kind_of(spec) == "mix" for spec in augment)
        self._read = _reader(examples, data, size, crops, seed)
        images, targets = self.batch(np.zeros(1, int), 0)
        self._shape = (data.batch_size, *images.shape[1:])
        self._target_shape = (data.batch_size, *targets.shape[1:])
        self._target_type = tf.as_dtype(targets.dtype)
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: _random(seed, epoch).permutation(len(examples))
        )

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Returns (images uint8, targets) of every step from `first_step` on.

        Targets are those of the data set or, where the recipe mixes images, what `mixable` made of
        them.
        """
        # No data set of a generator: TensorFlow then has the C library give back every freed block
        # of memory at once, and each training step asks for all of them again.
        read, types = self._reading(), (tf.uint8, self._target_type, tf.int64)

        def batch(step: Any) -> tuple[Any, ...]:
            images, targets, positions = tf.numpy_function(read, [step], types)
            images.set_shape(self._shape)
            targets.set_shape(self._target_shape)
            positions.set_shape(self._shape[:1])
            return images, targets, positions, step

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

    def augmented(self, images: Any, targets: Any, positions: Any, step: Any) -> tuple[Any, Any]:
        """Augments a batch as at a step, after any crop; see `dataset`."""
        if self._mixes:
            targets = self._mixable(targets)
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
                images, targets = AUGMENTATIONS.build(spec, images, targets, draw)
            else:
                images = AUGMENTATIONS.build(spec, images, draw)
        return images, targets

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

        It returns the images, targets and positions of the examples, int64.
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
