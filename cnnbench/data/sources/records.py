"""Examples in TFRecord files."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnbench.backend import private
from cnnbench.backend.lazy import tf
from cnnbench.data import images, survey
from cnnbench.data.examples import ArraySource
from cnnbench.data.pixels import BadImageError
from cnnbench.errors import DataError
from cnnbench.system.threads import for_each

# Before the data of a record: its length and a checksum.
HEADER_BYTES = 12


@dataclass(frozen=True)
class RecordSource:
    """Examples in TFRecord files, read by offset.

    Attributes:
        places: (examples, 3) int64: index into `files`, offset of the record's data, its length,
            both in bytes.
        reading: the options of `images.decode`.
        is_float: whether the four bytes of each pixel, stored as RGBA, are one float32.
        size: height and width of every image, in pixels; None if they differ.
    """

    files: tuple[str, ...]
    places: np.ndarray
    image_key: str
    label_key: str
    classes: int
    reading: Mapping[str, Any]
    is_float: bool = False
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> tuple[np.ndarray, Any]:
        """Reads one record and decodes its image."""
        data, label = self.record(index)
        decode = images.decode_floats if self.is_float else images.decode
        image = decode(data, name=self.name(index), **self.reading)
        if self.size and image.shape[:2] != self.size:
            found, right = (f"{each[0]}x{each[1]} pixels" for each in (image.shape, self.size))
            what = f"{right}, as the data set says"
            raise BadImageError(found, where=self.name(index), allowed=what)
        return image, label

    def record(self, index: int) -> tuple[bytes, Any]:
        """Returns the encoded image of a record and its label."""
        file, offset, _ = (int(place) for place in self.places[index])
        try:
            # TensorFlow's reader verifies checksums.
            record, _ = private.record_reader(self.files[file]).read(offset - HEADER_BYTES)
        except (OSError, IndexError, tf.errors.OpError) as error:
            raise DataError(f"cannot read the record: {error}", where=self.name(index)) from None
        try:
            features = tf.train.Example.FromString(record).features.feature
            data = features[self.image_key].bytes_list.value[0]
            label = features[self.label_key].int64_list.value[0]
        except Exception as error:  # the error type depends on protobuf's backend
            raise DataError(f"the record is damaged: {error}", where=self.name(index)) from None
        if not 0 <= label < self.classes:
            raise DataError(
                f"label {label}", where=self.name(index), allowed=f"0 to {self.classes - 1}"
            )
        return data, np.int32(label)

    def name(self, index: int) -> str:
        """Returns the record's file and offset."""
        file, offset, _ = self.places[index]
        return f"{self.files[file]} at byte {offset}"

    def name_below(self, index: int) -> str:
        """Returns the name of the record's file, and its offset."""
        return self.name(index).rpartition("/")[2]


def look(source: RecordSource) -> survey.Survey:
    """Looks at the pixels of some records.

    Raises:
        UsageError: `data.value_range` must be set for these images.
    """
    value_range = source.reading["value_range"]
    if not source.is_float:
        return survey.look(lambda i: source.record(i)[0], len(source), (), value_range, source.name)
    found = survey.Survey(value_range)
    for index in range(0, len(source), max(1, len(source) // survey.DECODED)):
        with contextlib.suppress(DataError):  # the training says so, or skips the record
            source.read(index)
        found.looked_at += 1
    found.found["float"] = found.looked_at
    return found


def in_memory(source: RecordSource) -> ArraySource:
    """Reads all records, whose images have one size, into one array."""
    first, label = source.read(0)
    pixels = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), label.dtype)

    def fill(index: int) -> None:
        pixels[index], labels[index] = source.read(index)

    for_each(fill, len(source))
    return ArraySource(pixels, labels)
