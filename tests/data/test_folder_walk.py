"""What becomes of every entry of an image folder, and which layouts are refused."""

import io
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import here
from PIL import Image

from cnnbench.data.open import Access, open_dataset
from cnnbench.data.splits import training_splits
from cnnbench.errors import DataError
from cnnbench.registry.kinds import DATASETS


def encoded(form="JPEG", color="red"):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, form)
    return out.getvalue()


JPEG = encoded()


def put(path, data=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make(root, splits=("train", "test"), classes=("cat", "dog"), count=4):
    for split in splits:
        for label, name in enumerate(classes):
            for i in range(count):
                # No two are the same; what follows the end of a JPEG is not read.
                put(root / split / name / f"{i}.jpg", JPEG + f"{split} {label} {i}".encode())
    return root


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "images")


def opened(root, **options):
    spec = DATASETS.spec(
        "image_folder", path=str(root), batch_size=2, image_size=8, **options
    )  # fmt: skip
    return open_dataset(spec, Access())


def recipe_of(root, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: f\nmodel: {{name: lenet5}}\ntrain: {{steps: 1}}\n"
        f"data: {{name: image_folder, path: {root}, image_size: 32, batch_size: 2}}\n"
        "optimizer: {name: sgd, lr: 0.1}\n"
    )
    return path


def used(dataset, split="train"):
    return {Path(path).name for path in dataset.split(split).source.paths}


def test_nothing_left_out_is_said_too(root):
    dataset = opened(root)
    assert dataset.counts == {"images": 16}
    (line,) = dataset.notes
    assert line == "images: 8 of train/ for train, 8 of test/ for test; left out: nothing"


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".pjpeg", ".Jpeg", ""])
def test_a_jpeg_is_read_under_each_of_its_suffixes_and_without_one(root, suffix):
    put(root / f"train/cat/windows{suffix}")
    dataset = opened(root)
    assert f"windows{suffix}" in used(dataset)
    assert dataset.counts.get("without_suffix", 0) == (suffix == "")


LEFT_OUT = {
    "other_suffix": [
        ("a.heic", JPEG), ("a.jpg_original", JPEG), ("a.tmp", encoded("PNG")),
        ("a.bak", encoded("WEBP")),
    ],
    "other_formats": [
        ("b.heic", b"\0\0\0\x18ftypheic" + bytes(20)), ("b.NEF", b"II*\0" + bytes(99)),
    ],
    "other_files": [("labels.csv", b"a,b"), ("README", b"BAD"), ("empty", b"")],
    "hidden": [("._0.jpg", JPEG), (".DS_Store", b"x"), (".ipynb_checkpoints/0.jpg", JPEG)],
    "helper_folders": [
        ("__MACOSX/0.jpg", JPEG), ("@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", JPEG),
        ("$RECYCLE.BIN/0.jpg", JPEG),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "kind"), [(*entry, kind) for kind in LEFT_OUT for entry in LEFT_OUT[kind]]
)
@pytest.mark.parametrize("place", ["train/cat", "train", "."])
def test_what_is_left_out_is_counted_and_named(root, place, name, data, kind):
    put(root / place / name, data)
    dataset = opened(root)
    assert used(dataset) == {f"{i}.jpg" for i in range(4)} and dataset.classes == ("cat", "dog")
    if place != "train/cat" and kind in ("other_suffix", "other_formats"):
        kind = "other_files"  # beside the classes, files are not opened
    assert dataset.counts == {"images": 16, kind: 1}
    assert str(Path(place, name.split("/")[0])) in dataset.notes[0]


def test_images_beside_the_classes_are_counted(root):
    put(root / "train/loose.jpg")
    put(root / "cover.png", encoded("PNG"))
    assert opened(root).counts == {"images": 16, "outside_classes": 2}


def test_linked_folders_are_read_once(root, tmp_path):
    make(tmp_path / "elsewhere", ("more",), ("deep",), 3)
    links = {
        "train/cat/more": tmp_path / "elsewhere/more",
        "train/cat/with_it": tmp_path / "elsewhere/more/deep",
        "train/dog/test": root / "test/dog",
        "train/dog/above": tmp_path,
        "train/dog/itself": root / "train/dog",
    }
    for link, target in links.items():
        (root / link).symlink_to(target)
    (tmp_path / "elsewhere/more/loop").symlink_to(tmp_path / "elsewhere")
    (root / "train/cat/gone.jpg").symlink_to("nowhere.jpg")
    (root / "train/cat/round.jpg").symlink_to("round.jpg")
    (root / "train/cat/file.jpg").symlink_to("0.jpg")
    counts = opened(root).counts
    assert counts == {
        "images": 16 + 3 + 1, "in_subfolders": 3, "repeated_links": 5, "broken_links": 2
    }  # fmt: skip


def test_pipes_are_not_opened(root):
    os.mkfifo(root / "train/cat/pipe.jpg")
    os.mkfifo(root / "train/cat/pipe")
    assert opened(root).counts == {"images": 16, "other_files": 2}


# Splits


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Valid", "VAL"])
def test_validation_folders_of_each_name(tmp_path, name):
    dataset = opened(make(tmp_path, ("train", name, "test")))
    assert len(dataset.split("validation")) == 8 and f"{name}/ for validation" in dataset.notes[0]
    dataset = opened(make(tmp_path / "two", ("Training", name)))
    assert (
        set(dataset.sources) == {"train", "test"} and f"8 of {name}/ for test" in dataset.notes[0]
    )


def test_of_two_folders_of_a_split_the_other_is_named(tmp_path):
    dataset = opened(make(tmp_path, ("train", "val", "valid", "test", "unlabeled")))
    assert (
        dataset.counts["other_folders"] == 2 and "no split (such as unlabeled)" in dataset.notes[0]
    )


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_split_without_class_folders_is_refused(tmp_path, split, flat):
    make(tmp_path, [each for each in ("train", "val", "test") if each != split])
    (tmp_path / split / ".hidden").mkdir(parents=True)
    for i in range(3 * flat):
        put(tmp_path / split / f"{i}.jpg")
    what = "3 images, but no class folders" if flat else "no class folders"
    with pytest.raises(DataError, match=f"{split}: {what}; must have one folder per class"):
        opened(tmp_path)


def test_train_refuses_a_flat_test_folder(root, tmp_path):
    for name in ("cat", "dog"):
        (root / "test" / name).rename(tmp_path / name)
    put(root / "test/1.jpg")
    done = here("train", recipe_of(root, tmp_path), "--no-tune", "--run-dir", tmp_path / "run")
    assert done.returncode == 3 and "test: 1 images, but no class folders" in done.stderr
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_data_set_say_what_they_hold(tmp_path):
    put(tmp_path / "file")
    with pytest.raises(DataError, match="file: cannot read the folder: Not a directory"):
        opened(tmp_path / "file")
    with pytest.raises(DataError, match=r"none: no such folder; must contain train/"):
        opened(tmp_path / "none")
    make(tmp_path / "classes", ("cat",), ("x",))
    with pytest.raises(DataError, match=r"no folder of train images; .*, not cat/"):
        opened(tmp_path / "classes")


def test_an_empty_class_says_what_is_there_instead(root):
    for file in (root / "train/cat").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"without images: cat; of cat/ left out: 4 with image"):
        opened(root)
    (root / "train/cafe\u0301").mkdir()
    shutil.rmtree(root / "train/cat")
    shutil.rmtree(root / "test/cat")
    with pytest.raises(DataError, match="images: caf\u00e9; caf\u00e9/ is empty"):
        opened(root)


# Names


def test_classes_are_the_same_in_either_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    sets = []
    for number, forms in enumerate(((composed,) * 2, (composed, decomposed), (decomposed,) * 2)):
        for split, name in zip(("train", "test"), forms, strict=True):
            make(tmp_path / str(number), (split,), (name, "dog"))
            put(tmp_path / str(number) / split / name / f"{name}.jpg")
        sets.append(opened(tmp_path / str(number)))
    for dataset in sets:
        assert dataset.classes == (composed, "dog") and len(dataset.split("test")) == 9
        assert dataset.fingerprint == sets[0].fingerprint
    make(tmp_path / "0", ("train",), (decomposed,))
    with pytest.raises(DataError, match="two folders of class café"):
        opened(tmp_path / "0")


def test_classes_that_differ_in_case_are_told(root):
    make(root, ("train",), ("Cat",))
    notes = opened(root).notes
    assert "classes that differ only in case or spaces: Cat, cat" in notes
    assert f"{root / 'test'} has no images of Cat" in notes
    (root / "test/dog").rename(root / "test/Dog ")
    with pytest.raises(DataError, match=r"missing from train/: Dog  \(train/ has dog\)"):
        opened(root)


# Permissions


@pytest.fixture
def user():
    """A folder of a user whom permissions bind: the superuser becomes nobody."""
    with tempfile.TemporaryDirectory() as place:
        if os.geteuid():
            yield Path(place)
            return
        os.chown(place, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(place)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(("place", "mode"), [
    (".", 0), ("train", 0), ("test", 0), ("train/cat", 0), ("train/cat/deep", 0), ("test/dog", 0),
    ("train", 0o400), ("train/cat", 0o400), ("train/cat/0.jpg", 0), ("test/dog/3.jpg", 0),
])  # fmt: skip
def test_permission_denied_is_said_of_the_entry_that_is_so(user, place, mode):
    make(user)
    put(user / "train/cat/deep/x.jpg")
    (user / place).chmod(mode)
    try:
        with pytest.raises(DataError, match="Permission denied") as told:
            opened(user)
        is_file = place.endswith("jpg")
        assert ("the image" if is_file else "the folder") in str(told.value)
        assert Path(told.value.where).is_relative_to(user / place)
    finally:
        (user / place).chmod(0o700)


def test_skip_leaves_out_unreadable_images_and_counts_them(user):
    make(user)
    (user / "train/cat/0.jpg").chmod(0)
    (user / "train/cat/notes").write_text("x")
    (user / "train/cat/notes").chmod(0)
    dataset = opened(user, on_bad_image="skip")
    assert dataset.counts == {"images": 15, "unreadable": 2}
    assert "2 unreadable (such as train/cat/0.jpg)" in dataset.notes[0]
    spec = DATASETS.spec("image_folder", path=str(user), image_size=8, on_bad_image="skip")
    assert len(training_splits(dataset, spec).train) == 7


def test_the_account_is_told_and_kept(root, tmp_path):
    from cnnbench import load_recipe, train
    from cnnbench.training.callbacks import Callbacks

    told = []

    class Listener(Callbacks):
        def started(self, run, steps, first_step, notes):
            told.extend(notes)

    put(root / "train/cat/left.bak")
    recipe = load_recipe(recipe_of(root, tmp_path))
    data = train(recipe, run_dir=tmp_path / "run", callbacks=Listener()).data()
    (line,) = [note for note in told if note.startswith("images: ")]
    assert "1 with image content but another suffix (such as train/cat/left.bak)" in line
    assert data.counts == {"images": 16, "other_suffix": 1} and data.notes == [line]


def test_pixels_are_those_of_the_file(root):
    put(root / "train/cat/only", encoded("PNG", "blue"))
    source = opened(root).split("train").source
    index = [Path(path).name for path in source.paths].index("only")
    assert np.array_equal(source.read(index)[0], np.full((8, 8, 3), (0, 0, 255)))
