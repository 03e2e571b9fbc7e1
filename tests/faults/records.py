"""Records of TFDS that are corrupt, lost, or have labels out of range."""

from __future__ import annotations

import functools
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .checks import as_command, check, check_error, run_child, spread
from .harness import Try, row

VERSION = "1.0.0"
SHARD = "train.tfrecord-00000-of-00001"


def make_records() -> None:
    """Prepares two data sets by TFDS, with images of one size and of several."""
    from cnnbench.backend.lazy import load

    load()
    import tensorflow_datasets as tfds

    def make(called: str, shape: tuple[int | None, int | None, int]) -> None:
        class Builder(tfds.core.GeneratorBasedBuilder):
            name = called
            VERSION = tfds.core.Version(VERSION)

            def _info(self) -> Any:
                features = tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=shape, encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=list("wxyz")),
                    }
                )
                keys = ("image", "label")
                return self.dataset_info_from_configs(features=features, supervised_keys=keys)

            def _split_generators(self, _: Any) -> Any:
                return {"train": self._generate_examples(12), "test": self._generate_examples(8)}

            def _generate_examples(self, count: int) -> Any:
                draw = np.random.default_rng(count)
                for i in range(count):
                    size = (8 if shape[0] else 8 + i, 8, 3)
                    yield i, {"image": draw.integers(0, 255, size, np.uint8), "label": i % 4}

        Builder(data_dir=sys.argv[1]).download_and_prepare()

    make("fixed", (8, 8, 3))
    make("varied", (None, None, 3))


def change_record() -> None:
    """Writes a file of records anew, with checksums that are right and the fourth changed."""
    from cnnbench.backend.lazy import tf

    file, harm = sys.argv[1:]
    records = [record.numpy() for record in tf.data.TFRecordDataset(file)]
    example = tf.train.Example.FromString(records[3])
    feature = example.features.feature
    if harm.startswith("label "):
        feature["label"].int64_list.value[0] = int(harm.removeprefix("label "))
    elif harm == "garbage":
        feature["image"].bytes_list.value[0] = b"no image"
    else:
        del feature[harm.removeprefix("no ")]
    records[3] = example.SerializeToString()
    with tf.io.TFRecordWriter(file) as writer:
        for record in records:
            writer.write(record)


def read_records() -> None:
    """Reads a data set of TFDS, as training and evaluation do."""
    from cnnbench.data.open import Access, open_dataset
    from cnnbench.data.reader import evaluation_batches
    from cnnbench.data.splits import evaluation_examples, training_splits
    from cnnbench.registry.kinds import DATASETS

    data_dir, name = sys.argv[1:]

    def work() -> None:
        spec: Any = DATASETS.spec("tfds", builder=name, batch_size=4, image_size=8)
        dataset = open_dataset(spec, Access(Path(data_dir), download=False))
        test, _ = evaluation_examples(dataset, spec, "test")
        for examples in (training_splits(dataset, spec).train, test):
            for _ in evaluation_batches(examples, spec, (8, 8), 4):
                pass

    as_command(work)


@functools.cache
def _records() -> tempfile.TemporaryDirectory:
    held = tempfile.TemporaryDirectory(prefix="cnnbench-records-")
    done = run_child(make_records, held.name)
    check(done.returncode == 0, f"TFDS prepared nothing: {done.stderr[-600:]}")
    for name in ("fixed", "varied"):
        done = run_child(read_records, held.name, name, XDG_CACHE_HOME=held.name)
        check(done.returncode == 0, f"whole records are not read: {done.stderr[-600:]}")
    return held


def _harm_bytes(harm: str, file: Path) -> None:
    from cnnbench.data.sources.tfds_reader import _index

    data, places = bytearray(file.read_bytes()), _index(file)
    offset, last = int(places[3][0]), int(places[-1][0])
    if harm == "bit":  # which makes another class of the label, as only a checksum tells
        data[data.index(b"\x1a\x03\n\x01", data.index(b"label", offset)) + 4] ^= 1
    elif harm == "length":
        data[offset - 11] ^= 1
    elif harm == "cut":
        data = data[:-9]
    elif harm == "record lost":
        data = data[: last - 12]
    elif harm == "appended":
        data += b"0123456789"
    elif harm == "empty":
        data.clear()
    file.write_bytes(data)
    if harm == "missing":
        file.unlink()


def bad_record(name: str, harm: str, folder: Path, _: random.Random) -> None:
    """One fault in a file of records: refused, by file and record."""
    shutil.copytree(Path(_records().name) / name, folder / name)
    (file,) = (folder / name / VERSION).glob(f"*{SHARD}")
    if harm.startswith(("label", "no ", "garbage")):
        done = run_child(change_record, file, harm)
        check(done.returncode == 0, f"the record cannot be changed: {done.stderr[-600:]}")
    else:
        _harm_bytes(harm, file)
    done = run_child(read_records, folder, name, XDG_CACHE_HOME=str(folder / "cache"))
    check_error(done, 3, file.name)
    if harm not in ("missing", "empty", "record lost"):
        named = re.search(r"(byte|record|example) \d+", done.stderr)
        check(named, f"no record is named: {done.stderr[-600:]}")


HARMS = (
    "bit", "length", "cut", "record lost", "appended", "empty", "missing",
    "label 4", "label -1", "no label", "no image", "garbage",
)  # fmt: skip


@row(15, "corrupt records, labels out of range: file and record named, exit 3", full=24)
def bad_records(count: int) -> Iterator[Try]:
    """Each fault in images of one size, which are held in memory, and of several."""
    pairs = [(name, harm) for harm in HARMS for name in ("fixed", "varied")]
    yield from spread([functools.partial(bad_record, *pair) for pair in pairs], count)
