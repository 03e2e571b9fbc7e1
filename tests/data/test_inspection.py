"""Bad images are found before training, all at once, or while it begins."""

import io
import threading

import numpy as np
import pytest
from conftest import here
from PIL import Image

from cnnbench.data.examples import Examples, FileSource
from cnnbench.data.inspection import Inspection, may_be_damaged
from cnnbench.errors import DataError, UsageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")


def encoded(form, size=40):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def suspected(data):
    return may_be_damaged(data[:4096], data[-4096:], len(data))


@pytest.mark.parametrize("form", FORMATS)
def test_whole_images_are_not_suspected(form):
    assert not suspected(encoded(form)) and not suspected(encoded(form, 1))
    assert not suspected(encoded(form) + bytes(10))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_images_that_were_cut_off_are_suspected(form, share):
    data = encoded(form)
    assert suspected(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"broken\n", b"<html>", bytes(5000), b"\xff\xd8"])
def test_what_is_no_image_is_suspected(data):
    assert suspected(data)


def files(folder, count, bad=(), doubtful=()):
    for i in range(count):
        data = encoded("PNG", 8)
        if i in bad:  # in the middle, which its ends do not show
            data = data[:50] + bytes(20) + data[70:]
        (folder / f"{i:03d}.png").write_bytes(data)
    paths = sorted(folder.iterdir())
    reading = {"channels": 3, "value_range": None}
    return Examples.all_of(FileSource(paths, np.zeros(count, int), reading, doubtful))


def test_all_bad_images_are_named_at_once(tmp_path):
    bad = range(5, 40, 3)
    with pytest.raises(DataError, match="12 of 50 images looked at cannot be used") as told:
        Inspection([files(tmp_path, 50, bad)]).begin()
    message = str(told.value)
    assert message.count(".png: cannot decode") == 8 and "and 4 more" in message
    assert "--accept-data-change" in message and "on_bad_image: skip" in message


def test_whole_images_say_nothing(tmp_path):
    assert Inspection([files(tmp_path, 20)]).begin() == []
    assert Inspection([]).begin() == []


def calling(examples, before_read):
    """The examples, of which each is read after a call with its index."""

    class Calling(FileSource):
        def read(self, index):
            before_read(index)
            return super().read(index)

    return Examples.all_of(Calling(**vars(examples.source)))


def test_the_rest_is_decoded_in_the_background(tmp_path):
    came_to, second = [], threading.Event()

    def read(index):
        came_to.append(index)
        if index == 1:  # by the one thread that has read the other then
            second.set()

    inspection = Inspection([calling(files(tmp_path, 2, bad=[0]), read)], seconds=-1)
    (line,) = inspection.begin()
    assert line.startswith("images: 0 of 2 were decoded") and not came_to
    assert inspection.failure() is None
    with inspection.going_on():
        assert second.wait(60)
        assert "000.png: cannot decode" in str(inspection.failure())


def test_the_background_ends_with_its_context(tmp_path):
    came_to, begun = [], threading.Event()

    def read(index):
        came_to.append(index)
        begun.set()
        assert inspection._stopped.wait(60)

    inspection = Inspection([calling(files(tmp_path, 30), read)], seconds=-1)
    with inspection.going_on():
        assert begun.wait(60)
    assert came_to == [0]


@pytest.mark.parametrize("error", [UsageError("which value is white", key="data"), MemoryError()])
def test_any_other_error_of_a_thread_comes_to_who_asks(tmp_path, error):
    def read(index):
        if index == 3:
            raise error

    examples = calling(files(tmp_path, 8), read)
    with pytest.raises(type(error)) as told:
        Inspection([examples]).begin()
    assert told.value is error
    inspection = Inspection([examples], seconds=-1)
    inspection.begin()
    with inspection.going_on():
        next(t for t in threading.enumerate() if t.name == "cnnbench-inspect").join(60)
        assert inspection.failure() is error


def test_doubtful_files_come_first(tmp_path):
    inspection = Inspection([files(tmp_path, 30, bad=[29], doubtful=[29])], seconds=0)
    assert next(inspection._todo)[1] == 29


@pytest.mark.parametrize("place", ["train/dog/zz.jpg", "test/cat/zz.jpg"])
def test_training_does_not_begin_with_a_bad_image(tmp_path, place):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / "images" / split / name / f"{i}.jpg").write_bytes(encoded("JPEG", 32))
    (tmp_path / "images" / place).write_text("broken\n")
    (tmp_path / "f.yaml").write_text(
        "name: f\nmodel: {name: lenet5}\noptimizer: {name: sgd, lr: 0.1}\ntrain: {steps: 1}\n"
        f"data: {{name: image_folder, path: {tmp_path}/images, batch_size: 4, image_size: 32}}\n"
    )
    done = here("train", tmp_path / "f.yaml", "--no-tune", "--run-dir", tmp_path / "run")
    assert done.returncode == 3 and "1 of 17 images" in done.stderr
    assert f"{place}: cannot decode" in done.stderr and "BytesIO" not in done.stderr
    assert not (tmp_path / "run").exists()
