"""TFDS sets with several features, and with records whose images are not as the set says."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from cnnbench.data.inspection import Inspection
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.splits import to_inspect, training_splits
from cnnbench.errors import CnnbenchError, DataError, UsageError
from cnnbench.registry.kinds import DATASETS

BAD, SPLITS = 3, ("train", "test")


def png(shape, cut=0):
    out = io.BytesIO()
    Image.fromarray(np.full(shape, 200, np.uint8)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[-20] ^= cut
    return io.BytesIO(bytes(data))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Sets of ten images of 8x8, of which one is damaged, of another size, or without a value."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features
    image = features.Image(shape=(8, 8, 3))
    alpha = features.Image(shape=(8, 8, 4), encoding_format="png")
    label = features.ClassLabel(names=["a", "b"])

    def prepare(name, kinds, example, supervised):
        def info(self):
            kind = features.FeaturesDict(kinds)
            return tfds.core.DatasetInfo(
                builder=self, features=kind, supervised_keys=supervised, description="x"
            )

        def examples(self, manager):
            return {split: iter([(i, example(i)) for i in range(10)]) for split in SPLITS}

        body = {
            "VERSION": tfds.core.Version("1.0.0"), "__module__": "__main__", "_info": info,
            "_split_generators": examples, "_generate_examples": None,
        }  # fmt: skip
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)(data_dir=str(folder))
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(download_config=config)

    def simple(name, kind, bad, good):
        row = lambda i: {"image": bad() if i == BAD else good(), "label": i % 2}  # noqa: E731 - short
        prepare(name, {"image": kind, "label": label}, row, ("image", "label"))

    simple("Damaged", image, lambda: png((8, 8, 3), cut=64), lambda: png((8, 8, 3)))
    simple("Free", features.Image(), lambda: png((8, 8, 3), cut=64), lambda: png((9, 8, 3)))
    simple("Larger", image, lambda: png((9, 8, 3)), lambda: png((8, 8, 3)))
    simple("Larger_alpha", alpha, lambda: png((9, 8, 4)), lambda: png((8, 8, 4)))
    pixel = features.Image(shape=(8, 8, 1), dtype=np.float32)
    full = lambda value: np.full((8, 8, 1), value, np.float32)  # noqa: E731 - short
    simple("Holes", pixel, lambda: full(np.nan), lambda: full(0.5))
    several = {
        "left": image, "right": image, "angle": features.ClassLabel(num_classes=3), "label": label,
        "mask": features.LabeledImage(labels=2, shape=(8, 8, 1)),
    }  # fmt: skip
    row = {"left": np.zeros((8, 8, 3), np.uint8), "right": np.full((8, 8, 3), 9, np.uint8)}
    row |= {"mask": np.zeros((8, 8, 1), np.uint8)}
    prepare("Several", several, lambda i: {**row, "angle": i % 3, "label": i % 2}, None)
    return folder


def opened(data_dir, builder, **options):
    spec = DATASETS.spec("tfds", builder=builder, batch_size=2, **options)
    return open_dataset(spec, Access(data_dir, download=False)), spec


@pytest.mark.parametrize(("builder", "what"), [
    ("damaged", "byte [0-9]+: cannot decode the image: broken data"),
    ("larger", "byte [0-9]+: 9x8 pixels; 8x8 pixels, as the data set says"),
    ("larger_alpha", "byte [0-9]+: 9x8 pixels; 8x8 pixels, as the data set says"),
    ("holes", "byte [0-9]+: no pixel has a value"),
])  # fmt: skip
def test_one_bad_record_of_fixed_size_costs_one_record(data_dir, builder, what):
    dataset, spec = opened(data_dir, builder)
    with pytest.raises(DataError, match=what):
        training_splits(dataset, spec)
    dataset, spec = opened(data_dir, builder, on_bad_image="skip")
    splits = training_splits(dataset, spec)
    assert len(splits.train) == 9 and len(splits.skipped) == 1
    read = [splits.train.source.read(i)[0] for i in splits.train.indices]
    assert {image.shape[:2] for image in read} == {(8, 8)}


def test_bad_records_of_free_size_are_found_before_training(data_dir):
    dataset, spec = opened(data_dir, "free")
    parts = to_inspect(dataset, spec, training_splits(dataset, spec))
    with pytest.raises(DataError, match="2 of 20 images looked at cannot be used") as told:
        Inspection(parts).begin()
    assert "at byte" in str(told.value) and "accept-data-change" not in str(told.value)
    assert "data.on_bad_image: skip" in str(told.value)


def test_of_several_features_the_recipe_says_which(data_dir):
    for options, what in (
        ({}, r"data\.image_key: .* does not say which feature to take; one of left, right"),
        ({"image_key": "left"}, r"data\.label_key: .* one of (angle, label|label, angle)$"),
        ({"image_key": "mask"}, r"data\.image_key: mask; one of left, right"),
    ):
        with pytest.raises(UsageError, match=what):
            opened(data_dir, "several", **options)
    dataset, _ = opened(data_dir, "several", image_key="right", label_key="label")
    source = dataset.split("train").source
    assert dataset.classes == ("a", "b") and source.images.mean() == 9


def test_keys_of_a_set_that_says_them_can_be_given(data_dir):
    dataset, _ = opened(data_dir, "larger", image_key="image", label_key="label")
    assert dataset.classes == ("a", "b")
    with pytest.raises(CnnbenchError, match=r"data\.label_key: x; one of label"):
        opened(data_dir, "larger", label_key="x")
