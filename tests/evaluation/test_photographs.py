"""The check of a run on photographs in folders."""

import json

import numpy as np
import pytest
from PIL import Image
from typed import problems

from cnnbench.errors import DataError
from cnnbench.evaluation.photographs import PhotographResult, check_photographs
from cnnbench.evaluation.predict import Prediction, predict


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
    assert not problems(found, PhotographResult)
    for row in predict(digits_run, [folder / "7/broken.png", *folder.glob("?/?.png")]):
        assert not problems(row, Prediction)
    assert json.loads((digits_run.path / "check.json").read_text()) == found


def test_too_few_photographs_are_no_failure_of_the_network(digits_run, photos, tmp_path):
    with pytest.raises(DataError, match=r"1 photographs .* too few .* at least 2 for 10 classes"):
        check_photographs(digits_run, photos(1))
    with pytest.raises(DataError, match="no such folder"):
        check_photographs(digits_run, tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/photo.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images is labelled by its path"):
        check_photographs(digits_run, tmp_path / "other")
