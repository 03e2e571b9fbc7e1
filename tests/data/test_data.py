"""Data: decoding, augmentation, order, counts, and data sets of every kind."""

import io
import os
import shutil
import socket
import tarfile
import threading
import time
import warnings
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import here
from PIL import Image

from cnnbench.data import images as geometry
from cnnbench.data import large, survey
from cnnbench.data.examples import ArraySource, Examples
from cnnbench.data.images import BadImageError, decode
from cnnbench.data.open import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream
from cnnbench.data.preprocess import Preprocess, convert_color, fit, preprocess
from cnnbench.data.reader import evaluation_batches, first_images
from cnnbench.data.splits import evaluation_examples, training_splits
from cnnbench.errors import DataError, UsageError
from cnnbench.registry.kinds import AUGMENTATIONS, DATASETS


def jpeg(color="red", size=(40, 30), **options) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise)
    picture.paste(Image.new("RGB", size, color), mask=Image.new("L", size, 160))
    picture.save(out, **({"format": "JPEG"} | options))
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes: five images each to train on, three to test."""
    for split, count in (("train", 5), ("test", 3)):
        for color in ("red", "blue"):
            place = tmp_path / "pictures" / split / color
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.jpg").write_bytes(jpeg(color, (40 + i, 30)))
    return tmp_path / "pictures"


def folder_spec(path, **options):
    return DATASETS.spec("image_folder", path=str(path), batch_size=4, image_size=16, **options)


# Decoding


def test_decode_knows_many_formats_and_modes(random):
    base = Image.fromarray(random.integers(0, 255, (20, 24, 3), np.uint8))
    for mode, form in (
        ("RGB", "PNG"), ("L", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"),
        ("CMYK", "JPEG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("RGB", "TIFF"), ("RGB", "BMP"),
    ):  # fmt: skip
        if mode == "I;16":
            picture = Image.fromarray(np.full((20, 24), 32768, np.uint16))
        else:
            picture = base.convert(mode)
        out = io.BytesIO()
        picture.save(out, form)
        for channels in (1, 3):
            array = decode(out.getvalue(), channels, "x")
            assert array.shape == (20, 24, channels) and array.dtype == np.uint8
        if mode == "I;16":
            assert np.all(array == 128)


def test_decode_turns_images_upright():
    picture = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    assert decode(out.getvalue(), 3, "x").shape == (20, 10, 3)


@pytest.mark.parametrize("data", [b"", b"hello", jpeg()[:200], b"\xff\xd8\xff" + bytes(50)])
def test_what_is_no_image_is_named(data):
    with pytest.raises(BadImageError, match=r"holiday\.jpg"):
        decode(data, 3, "holiday.jpg")


def test_an_image_of_too_many_pixels_is_not_decoded(monkeypatch):
    monkeypatch.setattr(large, "LARGE_PIXELS", 100)
    monkeypatch.setattr(large, "MAX_PIXELS", 100)
    with pytest.raises(BadImageError, match="at most 100"):
        decode(jpeg(), 3, "x")


def test_centre_crop_scales_the_short_side():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 26:54] = 255
    cropped = geometry.centre_crop(image, 20, (10, 10))
    assert cropped.shape == (10, 10, 3)
    assert np.all(cropped == 255)


# Colour and normalisation


@pytest.mark.parametrize(("color", "reference"), [
    ("hsv", tf.image.rgb_to_hsv), ("yuv", tf.image.rgb_to_yuv), ("rgb", tf.identity),
    ("grey", tf.image.rgb_to_grayscale), ("bgr", lambda x: x[..., ::-1]),
])  # fmt: skip
def test_colours_equal_tensorflows(color, reference, random):
    rgb = tf.constant(random.random((2, 9, 9, 3), np.float32))
    rgb = tf.concat([rgb, tf.zeros((1, 9, 9, 3)), tf.ones((1, 9, 9, 3))], 0)
    ours, theirs = convert_color(rgb, color).numpy(), reference(rgb).numpy()
    assert np.abs(ours - theirs).max() < 2e-4


def test_grey_images_become_what_is_asked_for():
    grey = tf.constant([[[[0.5]]]])
    assert convert_color(grey, "rgb").numpy().tolist() == [[[[0.5, 0.5, 0.5]]]]
    assert np.allclose(convert_color(grey, "yuv"), [0.5, 0, 0], atol=1e-6)


def test_normalisation_of_a_data_set_is_the_published_one():
    prepare = Preprocess("rgb", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    out = prepare(tf.constant([[[[255, 0, 51]]]], tf.uint8)).numpy().ravel()
    assert np.allclose(out, [2.5, -4 / 3, -0.25], atol=1e-5)
    spec = DATASETS.spec("digits", color="rgb", image_size=32)
    found = preprocess(open_dataset(spec, Access()), spec)
    assert found.mean == (0.3053,) * 3 and found.std == (0.3760,) * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10"])
def test_published_statistics_are_those_of_the_data(name, cifar10):
    spec = DATASETS.spec(name)
    dataset = open_dataset(spec, Access(cifar10, download=False))
    pixels = dataset.split("train").source.images
    assert pixels.shape == (50_000, 32, 32, 3)
    assert np.allclose(pixels.mean(axis=(0, 1, 2)) / 255, dataset.mean, atol=1e-3)
    assert np.allclose(pixels.std(axis=(0, 1, 2)) / 255, dataset.std, atol=1e-3)
    assert len(dataset.split("test")) == 10_000
    assert np.all(np.bincount(dataset.split("test").source.targets) == 1000)


# Order and counts


def numbered(count):
    """Examples whose pixels tell their number."""
    pixels = np.zeros((count, 4, 4, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    return Examples.all_of(ArraySource(pixels, np.arange(count, dtype=np.int32)))


def stream(examples, first=0, steps=10, batch_size=8, augment=(), seed=1):
    data = DATASETS.spec("synthetic", batch_size=batch_size)
    made = TrainingStream(examples, data, (4, 4), augment, seed, partial(tf.one_hot, depth=60))
    return made, [(x.numpy(), y.numpy()) for x, y in made.dataset(first).take(steps)]


def test_an_epoch_has_no_example_twice_and_epochs_differ():
    made, batches = stream(numbered(50), steps=12)
    assert made.steps_per_epoch == 6
    labels = np.array([y for _, y in batches])
    for epoch in (labels[:6], labels[6:]):
        assert len(set(epoch.ravel())) == 48
    assert not np.array_equal(labels[:6], labels[6:])
    for images, y in batches:
        assert np.array_equal(images[:, 0, 0, 0], y)


def test_starting_at_a_step_is_a_seek():
    augment = [AUGMENTATIONS.spec("random_crop"), AUGMENTATIONS.spec("cutout", size=2)]
    _, whole = stream(numbered(50), steps=20, augment=augment)
    _, later = stream(numbered(50), first=13, steps=7, augment=augment)
    for (x, y), (x2, y2) in zip(whole[13:], later, strict=True):
        assert np.array_equal(x, x2) and np.array_equal(y, y2)


def test_another_seed_is_another_order():
    _, one = stream(numbered(50), seed=1)
    _, two = stream(numbered(50), seed=2)
    assert not np.array_equal(one[0][1], two[0][1])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UsageError, match="at most 50"):
        stream(numbered(50), batch_size=51)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 23, 64])
def test_evaluation_counts_every_example_once(batch_size):
    data = DATASETS.spec("synthetic", batch_size=batch_size)
    seen = []
    for images, labels, count in evaluation_batches(numbered(23), data, (4, 4), batch_size):
        assert len(images) == len(labels) == batch_size
        seen += labels[:count].tolist()
    assert seen == list(range(23))


@pytest.mark.parametrize(("count", "found"), [(5, 5), (23, 23), (40, 23)])
def test_the_first_images_are_those_in_the_order_of_the_examples(count, found):
    examples = numbered(23).shuffled()
    images = first_images(examples, DATASETS.spec("synthetic"), (4, 4), count)
    expected = examples.source.images[examples.indices[:count]]
    assert len(images) == found and np.array_equal(images, expected)


@pytest.mark.parametrize(("validation", "expected"), [(20, 20), (0.25, 24), (0, 0)])
def test_validation_is_carved_from_training_alike_for_every_seed(validation, expected):
    data = DATASETS.spec("synthetic", examples=96, validation=validation)
    dataset = open_dataset(data, Access())
    splits = training_splits(dataset, data)
    kept = set(splits.validation.indices) if splits.validation else set()
    assert len(kept) == expected and len(splits.train) == 96 - expected
    assert not kept & set(splits.train.indices)


# Folders


def test_a_folder_of_images(folder):
    spec = folder_spec(folder)
    dataset = open_dataset(spec, Access())
    assert dataset.classes == ("blue", "red")
    examples, _ = evaluation_examples(dataset, spec, "test")
    found = list(evaluation_batches(examples, spec, (16, 16), 4))
    counts = [count for _, _, count in found]
    assert counts == [4, 2]
    for images, labels, count in found:
        for image, label in zip(images[:count], labels[:count], strict=True):
            red, _, blue = image.mean(axis=(0, 1))
            assert (red > blue) == (label == 1)


def spoil(folder):
    (folder / "train/red/0.jpg").write_bytes(jpeg()[:300])
    (folder / "train/blue/1.jpg").write_bytes(b"")
    (folder / "train/blue/2.jpg").write_bytes(jpeg(format="PNG"))  # only the name is wrong


def test_bad_images_are_skipped_and_named(folder):
    spoil(folder)
    splits = training_splits(
        open_dataset(spec := folder_spec(folder, on_bad_image="skip"), Access()), spec
    )
    assert len(splits.train) == 8
    assert splits.skipped == ("train/blue/1.jpg", "train/red/0.jpg")


def test_a_bad_image_fails_the_run_by_its_name(folder, tmp_path):
    spoil(folder)
    recipe = tmp_path / "folder.yaml"
    recipe.write_text(
        f"name: f\nmodel: {{name: lenet5}}\ndata: {{name: image_folder, path: {folder}, "
        "batch_size: 4, image_size: 16, on_bad_image: fail}\n"
        "augment: [{name: random_resized_crop}]\n"
        "optimizer: {name: sgd, lr: 0.1}\ntrain: {epochs: 5}\n"
    )
    done = here("train", recipe, "--run-dir", tmp_path / "run")
    assert done.returncode == 3
    assert "0.jpg: cannot decode" in done.stderr or "1.jpg: the image file is empty" in done.stderr
    assert "Traceback" not in done.stderr
    done = here(
        "train", recipe, "--set", "data.on_bad_image=skip", "--set", "train.epochs=1",
        "--run-dir", tmp_path / "run2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0.jpg" in done.stderr and "1.jpg" in done.stderr


def test_an_image_is_cropped_once(folder):
    crop = [AUGMENTATIONS.spec("random_resized_crop")]
    seen = []
    for short in (None, 24):
        spec = folder_spec(folder, resize_short=short)
        examples = training_splits(open_dataset(spec, Access()), spec).train
        stream = TrainingStream(examples, spec, (16, 16), crop, 0, partial(tf.one_hot, depth=2))
        seen.append(next(iter(stream.dataset(0)))[0].numpy())
    assert (seen[0] == seen[1]).all()


def test_pixels_are_looked_at_when_that_is_asked_for(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(survey, "look", lambda *_: asked.append(1) or survey.Survey(None, 16))
    dataset = open_dataset(folder_spec(folder), Access())
    assert len(dataset.split("test")) == 6 and not asked
    assert dataset.survey.looked_at == dataset.survey.looked_at == 16 and asked == [1]


def test_images_are_decoded_without_a_change_of_the_filters_of_warnings(monkeypatch):
    def refuse(**_):
        raise AssertionError("it is not made for threads")

    monkeypatch.setattr(warnings, "catch_warnings", refuse)
    assert decode(jpeg(), 3, "x").shape[2] == 3
    with pytest.raises(BadImageError):
        decode(b"II*\0" + bytes(20), 3, "x")


def test_nothing_left_is_an_error(folder):
    for file in (folder / "test").rglob("*.jpg"):
        file.write_bytes(b"")
    spec = folder_spec(folder, on_bad_image="skip")
    with pytest.raises(DataError, match="none of 6 images"):
        evaluation_examples(open_dataset(spec, Access()), spec, "test")


def test_a_validation_folder_goes_before_a_share_of_training(folder):
    (folder / "test").rename(folder / "val")
    make = folder / "test/red"
    make.mkdir(parents=True)
    (make / "x.jpg").write_bytes(jpeg())
    (folder / "train/red/.hidden").mkdir()
    (folder / "train/red/.hidden/x.jpg").write_bytes(jpeg())
    spec = folder_spec(folder, validation=0.5)
    splits = training_splits(open_dataset(spec, Access()), spec)
    assert len(splits.train) == 10 and len(splits.validation) == 6


def folder_fingerprint(path):
    return open_dataset(folder_spec(path), Access()).fingerprint


@pytest.mark.parametrize("place", [0, 4095, -4096, -1])
def test_a_changed_end_of_a_large_image_is_another_data_set(folder, place, random):
    file = folder / "train/red/0.jpg"
    data = bytearray(random.bytes(100_000))
    file.write_bytes(data)
    before = folder_fingerprint(folder)
    data[place] ^= 1
    file.write_bytes(data)
    assert folder_fingerprint(folder) != before


@pytest.mark.parametrize("size", [1, 4096, 4097, 8192])
def test_any_changed_byte_of_a_small_image_is_another_data_set(folder, size, random):
    file = folder / "test/blue/0.jpg"
    data = bytearray(random.bytes(size))
    file.write_bytes(data)
    before = folder_fingerprint(folder)
    for place in {0, size // 3, size // 2, min(4096, size - 1), size - 1}:
        changed = data.copy()
        changed[place] ^= 1
        file.write_bytes(changed)
        assert folder_fingerprint(folder) != before


def test_a_copied_folder_is_the_same_data_set(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copied")  # with other times, for one
    assert folder_fingerprint(copied) == folder_fingerprint(folder)


def test_resize_short_holds_for_images_of_the_right_size_too():
    image = np.zeros((16, 16, 3), np.uint8)
    image[4:12, 4:12] = 255
    spec = DATASETS.spec("synthetic", image_size=16, resize_short=32)
    assert fit(image, spec, (16, 16)).mean() > 200


@pytest.mark.parametrize("options", [{"mean": [0.5] * 3}, {"std": [0.5] * 3, "mean": [0.5] * 3}])
def test_statistics_that_do_not_fit_the_channels_are_refused(options):
    spec = DATASETS.spec("synthetic", shape=[16, 16, 1], **options)
    with pytest.raises(UsageError, match="one per channel: 1"):
        preprocess(open_dataset(spec, Access()), spec)


@pytest.mark.parametrize("split", ["train[:200%]", "train[:xx]", "exam"])
def test_a_split_that_is_none_is_explained(cifar10, split):
    spec = DATASETS.spec("tfds", builder="cifar10", train_split=split)
    with pytest.raises(DataError, match=r"train\[:80%\]"):
        open_dataset(spec, Access(cifar10, download=False))


@pytest.mark.parametrize("spoiled", ["no test", "one class", "strange class", "empty class"])
def test_a_folder_that_is_wrong_is_explained(folder, spoiled):
    if spoiled == "no test":
        (folder / "test").rename(folder / "exam")
    elif spoiled == "one class":
        (folder / "train/red").rename(folder / "train/.red")
    elif spoiled == "strange class":
        (folder / "test/red").rename(folder / "test/green")
    else:
        (folder / "train/green").mkdir()
    with pytest.raises(DataError, match=r"no folder of test|1 classes|green"):
        open_dataset(folder_spec(folder), Access())


# TFDS


def test_a_missing_data_set_is_answered_after_one_look_at_its_host(tmp_path, monkeypatch):
    looks = []

    def nobody(connection, address):
        looks.append(connection.gettimeout())
        raise ConnectionRefusedError

    place = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: place)
    monkeypatch.setattr(socket.socket, "connect", nobody)
    with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz.*--data-dir"):
        open_dataset(DATASETS.spec("cifar100"), Access(tmp_path))
    assert len(looks) == 1 and looks[0] <= 5


def test_one_process_prepares_a_data_set_and_the_others_wait(tmp_path, capsys):
    from cnnbench.data.sources.tfds_reader import _preparation_lock

    order = []

    def prepare():
        with _preparation_lock(tmp_path / "data/.x.lock", "x"):
            order.append("the other")

    other = threading.Thread(target=prepare)
    with _preparation_lock(tmp_path / "data/.x.lock", "x"):
        other.start()
        while f"(pid {os.getpid()}) is preparing data set 'x'" not in capsys.readouterr().err:
            assert other.is_alive()
            time.sleep(0.01)
        order.append("the first")
    other.join()
    assert order == ["the first", "the other"]


def test_any_classification_set_of_the_catalogue(cifar10):
    spec = DATASETS.spec(
        "tfds", builder="cifar10", train_split="train[:1%]", test_split="test[:5%]"
    )
    dataset = open_dataset(spec, Access(cifar10, download=False))
    assert len(dataset.split("train")) == 500 and len(dataset.split("test")) == 500
    builder = tfds.builder("cifar10", data_dir=cifar10)
    found = dataset.split("train").source.images
    first = tfds.as_numpy(builder.as_dataset(split="train[:1%]", shuffle_files=False))
    assert np.array_equal(found, [row["image"] for row in first])


def test_the_places_of_records_are_kept_if_the_cache_can_be_written(cifar10, tmp_path, monkeypatch):
    from cnnbench.data.sources import tfds_reader

    builder = tfds_reader._builder("cifar10", cifar10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    (tmp_path / "none").write_text("not a folder")
    files, places = tfds_reader._places(builder, "test")
    assert places.shape == (10_000, 3) and len(files) == 1

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert np.array_equal(tfds_reader._places(builder, "test")[1], places)
    (kept,) = (tmp_path / "cnnbench/records").iterdir()
    assert kept.suffix == ".npz"
    monkeypatch.delattr(tfds_reader, "_index")  # not looked for again
    assert np.array_equal(tfds_reader._places(builder, "test")[1], places)


def test_a_wrong_number_of_classes_is_refused(cifar10):
    with pytest.raises(DataError, match="has 10 classes"):
        spec = DATASETS.spec("tfds", builder="cifar10", classes=100)
        open_dataset(spec, Access(cifar10, download=False))


def make_imagenet(manual):
    """The two archives of ILSVRC 2012, with four classes of six training images each."""
    manual.mkdir(parents=True)
    synsets = ("n01440764", "n01443537", "n01484850", "n01491361")
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
        for i, synset in enumerate(synsets):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for k in range(6):
                    add(archive, f"{synset}_{k}.JPEG", jpeg(("red", "blue")[i % 2], (60 + k, 50)))
            add(outer, f"{synset}.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for k in range(5):
            add(archive, f"ILSVRC2012_val_{k + 1:08d}.JPEG", jpeg(size=(70, 50 + k)))


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_imagenet_is_prepared_from_its_archives_and_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data_dir = tmp_path / "data"
    make_imagenet(data_dir / "downloads/manual")
    spec = DATASETS.spec("imagenet2012", batch_size=4, image_size=32, resize_short=40)
    dataset = open_dataset(spec, Access(data_dir))
    assert len(dataset.classes) == 1000
    train = dataset.split("train")
    assert len(train) == 24
    labels = sorted(train.source.read(i)[1] for i in range(24))
    assert labels == sorted([0] * 6 + [1] * 6 + [2] * 6 + [3] * 6)
    assert train.source.read(0)[0].shape[2] == 3
    examples, _ = evaluation_examples(dataset, spec, "test")
    assert sum(count for *_, count in evaluation_batches(examples, spec, (32, 32), 2)) == 5

    done = here(
        "train", "resnet50_imagenet", "--smoke", "--data-dir", data_dir,
        "--set", "data.image_size=64", "--set", "data.resize_short=72",
        "--set", "model={name: lenet5}",
        "--set", "train.precision=float32", "--set", "data.validation=4",
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "synthetic images" not in done.stderr
    again = open_dataset(spec, Access(data_dir, download=False))
    assert again.fingerprint == dataset.fingerprint


def test_a_cut_off_record_is_named(tmp_path, monkeypatch):
    from cnnbench.data.sources.tfds_reader import _index

    file = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for i in range(3):
            writer.write(bytes([i]) * (10 + i))
    assert [(int(o), int(n)) for o, n in _index(file)] == [(12, 10), (38, 11), (65, 12)]
    file.write_bytes(file.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"record 2 is truncated"):
        _index(file)
