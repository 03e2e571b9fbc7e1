"""Images that are there twice, in two splits or classes, and folders that are one."""

import inspect
import os
import shutil
import sys

import pytest
from test_folder_walk import make, opened, put

from cnnbench.errors import DataError


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "images")


@pytest.mark.parametrize(("link", "target", "what"), [
    ("test", "train", r"train/ and test/ are one folder"),
    ("train/fox", "cat", r"cat/ and fox/ are one folder"),
])  # fmt: skip
def test_a_folder_is_not_taken_for_two_things(root, link, target, what):
    if (root / link).exists():
        shutil.rmtree(root / link)
    (root / link).symlink_to(target)
    with pytest.raises(DataError, match=what):
        opened(root)


def test_images_of_two_splits_or_classes_are_told(root):
    assert len(opened(root).notes) == 1
    os.link(root / "train/cat/0.jpg", root / "test/cat/x.jpg")
    shutil.copy(root / "train/cat/1.jpg", root / "train/dog/y.jpg")
    put(root / "train/cat/empty.jpg", b"")
    put(root / "test/dog/empty.jpg", b"")
    _, inside, across = opened(root, on_bad_image="skip").notes
    same = "have the size and the first and last bytes of"
    assert inside == (
        f"1 images of train/ {same} images of another class "
        "(such as train/dog/y.jpg and train/cat/1.jpg)"
    )
    assert across == (
        f"1 images of test/ {same} images of train/ (such as test/cat/x.jpg and train/cat/0.jpg)"
    )


def test_images_below_their_class_are_counted(root):
    (root / "train/cat/0.jpg").rename(root / "train/cat.jpg")
    (root / "train/cat/tabby").mkdir()
    (root / "train/cat.jpg").rename(root / "train/cat/tabby/0.jpg")
    dataset = opened(root)
    assert dataset.counts == {"images": 16, "in_subfolders": 1}
    assert (
        "; 1 are in folders below that of their class (such as train/cat/tabby/0.jpg);"
        in (dataset.notes[0])
    )


def test_folders_deeper_than_the_stack_of_python_are_walked(root):
    (root / "train/cat" / "/".join("d" * 400)).mkdir(parents=True)
    most = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        assert opened(root).counts == {"images": 16}
    finally:
        sys.setrecursionlimit(most)


@pytest.mark.parametrize("name", [b"ch\xe9vre", b"a\nb", b"red\x1b[0m"])
def test_a_class_has_a_name_that_every_file_can_hold(root, name):
    (root / "train" / os.fsdecode(name)).mkdir()
    with pytest.raises(DataError, match=r"class folder '.*' is not UTF-8 or has control char"):
        opened(root)
    (root / "train" / os.fsdecode(name)).rmdir()
    put(root / "train/👩\u200d🔬\u00a0कुत्ता/1.jpg")
    assert len(opened(root).classes) == 3


def test_a_link_to_nothing_is_called_so(tmp_path):
    (tmp_path / "images").symlink_to("nowhere")
    with pytest.raises(DataError, match="images: a link to nothing; must contain"):
        opened(tmp_path / "images")
