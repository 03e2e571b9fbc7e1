"""The training stream: augmented batches, from any step on.

The batch of a step depends only on (seed, step): the order of an epoch is a permutation drawn from
(seed, epoch), and every augmentation draws from (seed, its index in the recipe, step, position in
the batch). To resume training is to start the stream at a later step.
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
from cnnbench.data.gate import Gate
from cnnbench.data.reader import AHEAD, Batch, batch_reader, random_at
from cnnbench.errors import CnnbenchError, UsageError
from cnnbench.registry.kinds import AUGMENTATIONS, DataSpec, excess, kind_of
from cnnbench.registry.registry import Spec


class TrainingStream:
    """Endless batches of augmented training examples, from any step on.

    An epoch consists of whole batches; each epoch leaves out the last examples of its permutation
    that do not fill a batch.

    Args:
        examples: to train on.
        data: the recipe's `data`.
        size: height and width of the images, in pixels.
        augment: the recipe's `augment`.
        seed: of the permutations and augmentations.
        mixable: converts targets to ones that can be mixed, e.g. labels to one-hot vectors.

    Raises:
        UsageError: the batch is larger than the data set, or an augmentation does not fit the
            image size.
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
                allowed=f"at most {len(examples)}, the number of training examples",
            )
        self.steps_per_epoch = len(examples) // data.batch_size
        self.failure: CnnbenchError | None = None
        self._gate = Gate()
        self._batch_size, self._seed, self._mixable = data.batch_size, seed, mixable
        crops = [spec for spec in augment if kind_of(spec) == "crop"]
        self._augment = [spec for spec in augment if spec not in crops]
        self._mixes = any(kind_of(spec) == "mix" for spec in augment)
        self._read = batch_reader(examples, data, size, crops, seed)
        images, targets = self.batch(np.zeros(1, int), 0)
        self._shape = (data.batch_size, *images.shape[1:])
        self._target_shape = (data.batch_size, *targets.shape[1:])
        self._target_type = tf.as_dtype(targets.dtype)
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: random_at(seed, epoch).permutation(len(examples))
        )

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Returns the batches of all steps from `first_step` on, (images uint8, targets).

        Targets are the data set's own, or the output of `mixable` if the recipe mixes images.
        """
        # Not from_generator: with it, the C library returns every freed block of memory to the
        # system at once, and each training step has to allocate them again.
        self._gate, types = Gate(), (tf.uint8, self._target_type, tf.int64)
        read = self._gate.guarded(self._prefetching_reader(), self._nothing)

        def batch(step: Any) -> tuple[Any, ...]:
            # Not stateful, as the batch depends on the step alone: with deterministic operations,
            # tf.data runs a stateful function, and all after it, only when the step asks for it.
            images, targets, positions = tf.numpy_function(read, [step], types, stateful=False)
            images.set_shape(self._shape)
            targets.set_shape(self._target_shape)
            positions.set_shape(self._shape[:1])
            return images, targets, positions, step

        steps = tf.data.Dataset.range(first_step, tf.int64.max)
        batches = steps.map(batch).map(self.augmented, tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        options.experimental_optimization.map_parallelization = False  # `read` goes step by step
        return batches.prefetch(AHEAD).with_options(options)

    def close(self) -> None:
        """Ends the reading ahead of the newest `dataset`, which then yields nothing of use."""
        self._gate.close()

    def positions(self, step: int) -> tuple[int, np.ndarray]:
        """Returns the epoch of a step, and the positions of its batch in the training examples."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self._batch_size
        return epoch, self._permutation(epoch)[start : start + self._batch_size]

    def batch(self, positions: np.ndarray, epoch: int) -> Batch:
        """Reads training examples, cropped as in the given epoch but not augmented otherwise."""
        return self._read(positions, epoch)()

    def augmented(self, images: Any, targets: Any, positions: Any, step: Any) -> tuple[Any, Any]:
        """Applies a step's augmentations, except crops, to a batch; see `dataset`."""
        if self._mixes:
            targets = self._mixable(targets)
        for place, spec in enumerate(self._augment):
            kind = kind_of(spec)
            if kind == "image":
                work = self._gate.guarded(partial(self._one_by_one, spec, place), _unchanged)
                changed = tf.numpy_function(work, [images, step], tf.uint8, stateful=False)
                images = tf.ensure_shape(changed, self._shape)
                continue
            key = int(random_at(self._seed, 2**32 + place).integers(2**62))
            seed = tf.stack([tf.constant(key, tf.int64), step])
            draw = Draw(seed, key, positions, step // self.steps_per_epoch)
            if kind == "mix":
                images, targets = AUGMENTATIONS.build(spec, images, targets, draw)
            else:
                images = AUGMENTATIONS.build(spec, images, draw)
        return images, targets

    def _one_by_one(self, spec: Spec, place: int, images: np.ndarray, step: int) -> np.ndarray:
        """Augments the images of a batch one by one."""
        randoms = (random_at(self._seed, 2**34 + place, int(step), i) for i in range(len(images)))
        entry, options = AUGMENTATIONS.get(spec.name), spec.options()
        changed = (
            entry.build(image, random, **options)
            for image, random in zip(images, randoms, strict=False)
        )
        return np.stack(list(changed))

    def _prefetching_reader(self) -> Callable[[int], tuple[np.ndarray, ...]]:
        """Returns a function that reads the batch of a step and prefetches the next ones.

        It returns images, targets and the int64 positions of the examples.
        """
        pending: collections.deque[tuple[int, np.ndarray, Callable[[], Batch]]]
        pending = collections.deque()

        def read(step: int) -> tuple[np.ndarray, ...]:
            if pending and pending[0][0] != step:  # a new iteration of the data set
                pending.clear()
            for following in range(step + len(pending), step + AHEAD):
                epoch, positions = self.positions(following)
                pending.append((following, positions, self._read(positions, epoch)))
            _, positions, wait = pending.popleft()
            try:
                return *wait(), positions.astype(np.int64)
            except CnnbenchError as error:  # TensorFlow keeps only its message
                self.failure = self.failure or error
                raise

        return read

    def _nothing(self, step: int) -> tuple[np.ndarray, ...]:
        """Returns what has the form of a batch."""
        images = np.zeros(self._shape, np.uint8)
        targets = np.zeros(self._target_shape, self._target_type.as_numpy_dtype)
        return images, targets, np.zeros(self._shape[:1], np.int64)


def _unchanged(images: np.ndarray, step: int) -> np.ndarray:
    return images
