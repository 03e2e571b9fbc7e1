"""The class of a photograph by its name, and what guessing would reach."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from cnnbench.data.sources.imagenet import class_names
from cnnbench.errors import DataError
from cnnbench.evaluation.photographs import (
    at_least_by_guessing,
    check_photographs,
    fewest,
    label_of,
)
from cnnbench.evaluation.predict import predict

CLASSES = ["tench", "great white shark", "crane (n02012849)", "Crane"]


@pytest.mark.parametrize(("path", "label"), [
    ("tench/1.jpg", "tench"), ("Great_White_Shark/a/1.jpg", "great white shark"),
    ("n01440764/x.jpg", "tench"), ("n01440764_tench.JPEG", "tench"), ("tench_2.jpg", "tench"),
    ("n02012849_crane.JPEG", None), ("tench.jpg", "tench"), ("other/1.jpg", None),
    ("tench/n01484850_shark.JPEG", "tench"),
])  # fmt: skip
def test_the_class_of_a_photograph(path, label):
    assert label_of(Path(path), CLASSES[:2], class_names()) == label


def test_every_synset_is_a_class():
    names = class_names()
    for synset, name in list(names.items())[::50]:
        assert label_of(Path(f"{synset}_x.JPEG"), list(names.values()), names) == name


@pytest.mark.parametrize(("hits", "count", "classes"), [
    (0, 10, 1000), (1, 1, 1000), (3, 100, 10), (50, 100, 2), (400, 5000, 3),
])  # fmt: skip
def test_hits_by_guessing_are_binomial(hits, count, classes):
    expected = binom.sf(hits - 1, count, 1 / classes)
    assert at_least_by_guessing(hits, count, classes) == pytest.approx(expected, rel=1e-7)


@pytest.fixture
def photos(digits_run, tmp_path):
    """A function that writes photographs in folders by the class that the run predicts."""

    def write(count):
        random = np.random.default_rng(0)
        for i in range(count):
            path = tmp_path / f"{i}.png"
            Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(path)
            (row,) = predict(digits_run, [path], top=1)
            folder = tmp_path / "photos" / row["top"][0]["class"]
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
        return tmp_path / "photos"

    return write


def test_what_cannot_be_read_is_counted_and_what_is_hidden_is_none(digits_run, photos):
    folder = photos(3)
    for name in ("broken.png", "._broken.png", ".trash/x.png"):
        path = folder / "7" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    (folder / "other").mkdir()
    (folder / "other/photo.png").write_bytes(b"no image")
    found = check_photographs(digits_run, folder)
    assert (found["images"], found["unreadable"], found["unlabelled"]) == (3, 1, 1)
    assert found["top1"] == found["top5"] == 1
    assert json.loads((digits_run.path / "check.json").read_text()) == found


def test_too_few_photographs_are_no_failure_of_the_network(digits_run, photos, tmp_path):
    with pytest.raises(DataError, match=r"1 photographs .* too few .* at least 2 for 10 classes"):
        check_photographs(digits_run, photos(1))
    with pytest.raises(DataError, match="no such folder"):
        check_photographs(digits_run, tmp_path / "missing")


@pytest.mark.parametrize(("classes", "count"), [(2, 7), (10, 2), (1000, 1)])
def test_the_fewest_photographs_that_show_something(classes, count):
    assert fewest(classes) == count
    assert at_least_by_guessing(count, count, classes) <= 0.01
    assert count == 1 or at_least_by_guessing(count - 1, count - 1, classes) > 0.01
