"""Preparing data sets of the TFDS catalog, and reading them by index."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cnnbench.backend.lazy import load as load_tensorflow
from cnnbench.backend.lazy import tf
from cnnbench.data.examples import ArraySource, Dataset, Source
from cnnbench.data.large import LARGE_PIXELS
from cnnbench.data.open import Access
from cnnbench.data.preprocess import reading
from cnnbench.data.sources.records import HEADER_BYTES, RecordSource, in_memory, look
from cnnbench.data.sources.tfds_features import image_and_label
from cnnbench.data.survey import Survey
from cnnbench.errors import DataError, MissingDataError, RunError, shortened
from cnnbench.registry.kinds import DataSpec
from cnnbench.system import locks
from cnnbench.system.files import cache_folder, new_file

# Splits of equally sized images up to this size are kept in memory.
IN_MEMORY_BYTES = 2 * 1024**3
CONNECT_SECONDS = 4.0
CATALOGUE = "see https://www.tensorflow.org/datasets/catalog"
# Contacted to check for a network if a data set lists no download URL.
CATALOGUE_HOST = "https://storage.googleapis.com"


def dataset(
    builder_name: str,
    train_split: str,
    test_split: str,
    data: DataSpec,
    access: Access,
    *,
    keys: tuple[str | None, str | None] = (None, None),
    **statistics: Any,
) -> Dataset:
    """Opens a TFDS classification data set, and prepares it first if necessary.

    Args:
        builder_name: in TFDS notation, e.g. `cifar10` or `cifar10:3.0.2`.
        train_split: a split of the data set or a slice of one, e.g. `train[:80%]`.
        test_split: likewise.
        data: the recipe's `data`.
        keys: the features of images and labels; None: as the data set says.
        access: where data sets are stored; without a folder, in TFDS_DATA_DIR or TFDS's default.
        **statistics: the published mean and std of the data set, if any.

    Raises:
        DataError: the data set does not exist, is not for image classification, cannot be
            prepared, lacks a split or is stored in another format than TFRecord.
    """
    builder = _prepared(builder_name, access.data_dir, access.download)
    _must_be_records(builder)
    image_key, label_key = image_and_label(builder, *keys)
    features = builder.info.features
    height, width, stored = features[image_key].shape
    channels = 1 if stored in (1, 2) else 3
    is_float = np.dtype(features[image_key].np_dtype) == np.float32
    classes = tuple(features[label_key].names)
    if len(classes) != features[label_key].num_classes:
        what = f"{len(classes)} names of {features[label_key].num_classes} classes"
        raise DataError(what, where=f"{builder.data_path}/{label_key}.labels.txt")
    if len(classes) < 2:
        what = f"data set {builder.name!r} has {len(classes)} class"
        raise DataError(what, where=str(builder.data_path), allowed="must be at least 2")
    size = None
    if None not in (height, width) and height * width <= LARGE_PIXELS:
        size = (height, width)
    counts = {split: _count(builder, split) for split in (train_split, test_split)}

    @functools.cache
    def records(split: str) -> RecordSource:
        places = _places(builder, split)  # raises if a file is truncated or too long
        load_tensorflow()  # now, because the reading threads would import it concurrently
        options = reading(data, channels)
        return RecordSource(*places, image_key, label_key, len(classes), options, is_float, size)

    @functools.cache
    def looked_at(split: str) -> Survey:
        return look(records(split))

    def load(split: str) -> Source:
        source = records(split)
        if None in (height, width) or counts[split] * height * width * channels > IN_MEMORY_BYTES:
            return source
        try:
            if is_float or stored not in (1, 3) or looked_at(split).found:
                return in_memory(source)
            return _arrays(builder, split, image_key, label_key, counts[split])
        except DataError:
            if data.on_bad_image == "skip":
                return source  # of which each bad image is left out
            for index in range(len(source)):
                source.read(index)  # raises at the damaged record, with its name
            raise

    return Dataset(
        name=builder.info.full_name,
        classes=classes,
        shape=(height, width, channels),
        sources={"train": lambda: load(train_split), "test": lambda: load(test_split)},
        identity=f"{builder.info.full_name} {counts} {_file_sizes(builder)}",
        look=lambda: looked_at(train_split),
        **statistics,
    )


def _must_be_records(builder: Any) -> None:
    form = getattr(builder.info.file_format, "value", "tfrecord")
    if form != "tfrecord":
        raise DataError(
            f"data set {builder.name!r} is stored as {form}",
            where=str(builder.data_path),
            allowed="only tfrecord is read: prepare it with tfds build --file_format=tfrecord",
        )


def _count(builder: Any, split: str) -> int:
    """Returns the number of examples of a split.

    Raises:
        DataError: the data set has no such split, or it is empty.
    """
    try:
        count = int(builder.info.splits[split].num_examples)
    except Exception:  # TFDS raises ValueError, KeyError, AssertionError, …
        count = 0
    if not count:
        raise DataError(
            f"data set {builder.name!r} has no split {split!r}, or it is empty",
            where=str(builder.data_path),
            allowed=f"one of {', '.join(sorted(builder.info.splits))}, or a slice of one, "
            "e.g. train[:80%]",
        )
    return count


def _prepared(name: str, data_dir: Path | None, download: bool) -> Any:
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    if _is_prepared(builder):
        return builder
    if isinstance(builder, tfds.core.read_only_builder.ReadOnlyBuilder):
        what = f"data set {builder.name!r} has no splits: its preparation did not end"
        raise DataError(what, where=str(builder.data_path), allowed="prepare it again")
    root = Path(builder.data_path).parents[len(Path(builder.info.full_name).parts) - 1]
    manual = root / "downloads" / "manual"
    missing = MissingDataError(
        f"data set {builder.name!r} is not prepared",
        where=str(root),
        allowed=_other_versions(builder) + _how_to_get(builder, manual),
    )
    if not _has_archives(builder, manual) and not (download and _is_reachable(builder)):
        raise missing
    try:
        with _preparation_lock(root / f".{builder.name}.lock", builder.name):
            # Check again: another process may have prepared it meanwhile.
            builder = _builder(name, data_dir)
            if not _is_prepared(builder):
                load_tensorflow()  # before TFDS does, with fewer log messages
                config = tfds.download.DownloadConfig(manual_dir=str(manual))
                with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                    builder.download_and_prepare(download_config=config)
    except Exception as error:  # builders raise errors of any type
        raise DataError(
            f"data set {builder.name!r} could not be prepared: {str(error).strip()[:500]}",
            where=str(root),
            allowed=_how_to_get(builder, manual),
        ) from error
    return builder


def _builder(name: str, data_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    place = data_dir or Path(os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR)
    try:
        return tfds.builder(name, data_dir=str(data_dir) if data_dir else None)
    except tfds.core.DatasetNotFoundError:
        what = f"no data set {name!r}, and TFDS has none of that name to prepare"
        raise DataError(what, where=str(place), allowed=_own_sets(name, place)) from None
    except Exception as error:  # a bad version or configuration: AssertionError, ValueError, …
        what = f"TFDS cannot open {name!r}: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise DataError(what, where=str(place)) from None


def _own_sets(name: str, place: Path) -> str:
    """Returns what must be there for a data set that is not in TFDS's catalog, and what is."""
    if not place.is_dir():
        return f"--data-dir or TFDS_DATA_DIR must be a folder; {CATALOGUE}"
    stem, _, version = name.partition(":")
    if not (place / stem).is_dir():
        return f"it must contain {stem}/VERSION/; {CATALOGUE}"
    found = ", ".join(shortened(sorted(each.name for each in (place / stem).iterdir())))
    needed = "features.json, dataset_info.json and the records"
    wanted = place / stem / (version or "VERSION")
    return f"{wanted} must contain {needed}; {place / stem} has {found or 'nothing'}"


def _is_prepared(builder: Any) -> bool:
    return bool(builder.info.splits) and Path(builder.data_path).is_dir()


@contextlib.contextmanager
def _preparation_lock(lock: Path, name: str) -> Iterator[None]:
    """Holds the lock for preparing a data set; waits while another process holds it.

    Without it, TFDS would do all the work in each process, and fail in all but the first to finish.
    The lock file is not deleted, so that all processes lock the same file.
    """

    def wait(holder: str) -> None:
        what = f"another process ({holder}) is preparing data set {name!r}"
        sys.stderr.write(f"{what}: waiting for it\n")

    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = locks.open_lock(lock)
    try:
        locks.lock(handle, wait)
        yield
    finally:
        os.close(handle)


def _has_archives(builder: Any, manual: Path) -> bool:
    """Returns whether the archives are in `manual`, TFDS's folder for manual downloads."""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return manual.is_dir() and any(manual.iterdir())
    names = [info.filename for info in builder.url_infos.values()]
    return bool(names) and all((manual / name).is_file() for name in names)


def _is_reachable(builder: Any) -> bool:
    """Returns whether the first archive's host accepts a connection within CONNECT_SECONDS."""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return False
    parts = urlsplit(next(iter(builder.url_infos), CATALOGUE_HOST))
    try:
        port = parts.port or {"http": 80, "ftp": 21}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _other_versions(builder: Any) -> str:
    """Returns how to use the other versions that are prepared, to be followed by alternatives."""
    folder = Path(builder.data_path).parent
    name = str(builder.info.full_name).rpartition("/")[0]
    found = sorted(file.parent.name for file in folder.glob("*/dataset_info.json"))
    named = " or ".join(f"data: {{name: tfds, builder: '{name}:{each}'}}" for each in found)
    return f"version {builder.version} is needed; {named} takes what is there; or " if found else ""


def _how_to_get(builder: Any, manual: Path) -> str:
    elsewhere = f"or set --data-dir or TFDS_DATA_DIR to the folder that contains {builder.name}/"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        text = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        return f"put its archives in {manual} ({text}), {elsewhere}"
    archives = ", ".join(builder.url_infos) or "its archive"
    return f"no network: put {archives} in {manual}, {elsewhere}"


def _arrays(builder: Any, split: str, image_key: str, label_key: str, count: int) -> ArraySource:
    load_tensorflow()  # before TFDS does, with fewer log messages
    import tensorflow_datasets as tfds

    raw = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({image_key: True, label_key: True}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    ).batch(1024)
    pixels = np.empty((count, *builder.info.features[image_key].shape), np.uint8)
    labels = np.empty(count, np.int32)
    position = 0
    try:
        for batch in raw.as_numpy_iterator():
            size = len(batch[label_key])
            pixels[position : position + size] = batch[image_key]
            labels[position : position + size] = batch[label_key]
            position += size
    except (tf.errors.OpError, ValueError) as error:  # ValueError: more than `count`
        where = f"{builder.data_path}, split {split}, after example {position}"
        raise unreadable(error, where) from None
    classes = builder.info.features[label_key].num_classes
    if position == count and not np.all((labels >= 0) & (labels < classes)):
        raise DataError(
            "a label is out of range", where=str(builder.data_path), allowed=f"0 to {classes - 1}"
        )
    if position != count:
        raise DataError(
            f"split {split!r} has {position} of {count} examples", where=str(builder.data_path)
        )
    return ArraySource(pixels, labels)


def unreadable(error: Exception, where: str) -> DataError:
    """Returns the error for records that TensorFlow could not read: they need not be damaged."""
    of_system = (
        tf.errors.NotFoundError,
        tf.errors.PermissionDeniedError,
        tf.errors.ResourceExhaustedError,
        tf.errors.UnavailableError,
    )
    what = "cannot read" if isinstance(error, of_system) else "the data set is damaged"
    return DataError(f"{what}: {str(error)[:200]}", where=where)


def _places(builder: Any, split: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Finds the records of a split; their offsets are kept in the user's cache.

    Returns:
        The files, and the `places` of a RecordSource.
    """
    instructions = builder.info.splits[split].file_instructions
    files = tuple(str(instruction.filename) for instruction in instructions)
    digest = hashlib.sha256(_file_sizes(builder).encode()).hexdigest()
    cache = cache_folder("records") / f"{digest}.npz"
    known: dict[str, np.ndarray] = {}
    damaged = (OSError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*damaged), np.load(cache, allow_pickle=False) as archive:
        known = dict(archive)
    places, new = [], False
    for number, (file, instruction) in enumerate(zip(files, instructions, strict=True)):
        name = Path(file).name
        if name not in known:
            known[name], new = _index(Path(file)), True
        if len(known[name]) != instruction.examples_in_shard:
            what = f"{len(known[name])} of {instruction.examples_in_shard} records"
            raise DataError(f"the file has {what}", where=file)
        part = known[name][instruction.skip :]
        part = part[: instruction.take] if instruction.take >= 0 else part
        places.append(np.column_stack([np.full(len(part), number), part]))
    if not new:
        return files, np.concatenate(places)
    # If the cache cannot be written, the next process reads the offsets again.
    with contextlib.suppress(RunError), new_file(cache) as partial, partial.open("wb") as opened:
        np.savez(opened, **known)  # type: ignore[arg-type]  # allow_pickle is not among `known`
    return files, np.concatenate(places)


def _index(file: Path) -> np.ndarray:
    """Returns the offset and length of each record's data in a TFRecord file, (records, 2) int64.

    A record is its length (uint64), a checksum (uint32), the data and a checksum (uint32).
    """
    places: list[tuple[int, int]] = []
    try:
        offset, end = 0, file.stat().st_size
        records = file.open("rb")
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(file)) from None
    with records:
        while offset < end:
            header = os.pread(records.fileno(), 12, offset)
            size = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else end
            if offset + HEADER_BYTES + size + 4 > end:
                where = f"{file} at byte {offset}"
                raise DataError(f"record {len(places)} is truncated", where=where)
            places.append((offset + HEADER_BYTES, size))
            offset += HEADER_BYTES + size + 4
    return np.array(places, np.int64).reshape(-1, 2)


def _file_sizes(builder: Any) -> str:
    """Returns the names and sizes of the record files; whoever reads one says what is wrong."""
    found = sorted(Path(builder.data_path).glob("*.tfrecord*"))
    return " ".join(f"{file.name}:{file.stat().st_size}" for file in found if file.exists())
