"""Images that are broken or odd, in an image folder."""

from __future__ import annotations

import functools
import io
import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .checks import check, check_error, cnnbench, flipped, spread
from .harness import Try, row

COLOUR = (200, 100, 50)
GREY = 124  # of that colour


def image(form: str, mode: str = "RGB", size: tuple[int, int] = (24, 20), **options: Any) -> bytes:
    """A file of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, COLOUR).convert(mode).save(out, form, **options)
    return out.getvalue()


def noise(form: str) -> bytes:
    """A file of noise, large enough that half of it is no image."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def _grey(form: str, array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, form)
    return out.getvalue()


def sixteen_bits() -> bytes:
    """A grey PNG of 16 bits a pixel."""
    return _grey("PNG", np.full((20, 24), GREY * 257, np.uint16))


def floats() -> bytes:
    """A grey TIFF of floating-point numbers."""
    array = np.full((20, 24), GREY / 255, np.float32)
    array[0, 0] = 1
    return _grey("TIFF", array)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG that says it is so large, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = _chunk(b"IDAT", zlib.compress(bytes(3000)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(extra) + pixels


def _half(form: str) -> bytes:
    data = noise(form)
    return data[: len(data) // 2]


def _bmp(width: int, height: int) -> bytes:
    data = bytearray(image("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


BAD_IMAGES: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "text.jpg": lambda: b"no image at all",
    "zeros.png": lambda: bytes(500),
    "start.jpg": lambda: b"\xff\xd8\xff" + bytes(50),
    "cut.jpg": lambda: _half("JPEG"),
    "cut.png": lambda: _half("PNG"),
    "cut.gif": lambda: _half("GIF"),
    "cut.webp": lambda: _half("WEBP"),
    "cut.tiff": lambda: _half("TIFF"),
    "cut.bmp": lambda: _half("BMP"),
    "cut.ppm": lambda: _half("PPM"),
    "header.png": lambda: flipped(noise("PNG"), 18),
    "pixels.png": lambda: flipped(noise("PNG"), 2000),
    "bomb.png": lambda: png(60_000, 60_000),
    "bomb.bmp": lambda: _bmp(50_000, 50_000),
    "text_bomb.png": lambda: png(30, 30, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
    "no_pixels.png": lambda: png(0, 0),
    "drawing.png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "program.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "pickle.gif": lambda: pickle.dumps({"a": 1}),
}
# With the colour that they must be read with.
ODD_IMAGES: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "cmyk.jpg": (lambda: image("JPEG", "CMYK", quality=95), COLOUR),
    "a_png.jpg": (lambda: image("PNG"), COLOUR),
    "16_bit.png": (sixteen_bits, (GREY,) * 3),
    "float.tiff": (floats, (GREY,) * 3),
    "one_pixel.png": (lambda: image("PNG", size=(1, 1)), COLOUR),
    "a_line.png": (lambda: image("PNG", size=(1, 900)), COLOUR),
    "CAPITALS.JPG": (lambda: image("JPEG", progressive=True, quality=95), COLOUR),
    "bad_exif.jpg": (lambda: image("JPEG", exif=b"Exif\0\0garbage" * 9, quality=95), COLOUR),
}


def image_folder(root: Path) -> Path:
    """Makes a data set of two classes, with four images each to train on and three to test."""
    for split, count in (("train", 4), ("test", 3)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(image("PNG"))
    return root


def _read_all(root: Path, policy: str) -> tuple[dict[str, int], dict[str, tuple[str, ...]], list]:
    """Reads both splits of an image folder: the counts, what was skipped, and the images."""
    from cnnbench.data.open import Access, open_dataset
    from cnnbench.data.reader import evaluation_batches
    from cnnbench.data.splits import evaluation_examples, training_splits
    from cnnbench.registry.kinds import DATASETS

    spec: Any = DATASETS.spec(
        "image_folder", path=str(root), batch_size=4, image_size=16, on_bad_image=policy
    )
    dataset = open_dataset(spec, Access())
    train = training_splits(dataset, spec)
    test, skipped = evaluation_examples(dataset, spec, "test")
    found, counts = [], {}
    for split, examples in (("train", train.train), ("test", test)):
        counts[split] = 0
        for images, _, count in evaluation_batches(examples, spec, (16, 16), 4):
            counts[split] += count
            found += list(images[:count])
    return counts, {"train": train.skipped, "test": skipped}, found


def bad_image(name: str, data: Callable[[], bytes], folder: Path, _: random.Random) -> None:
    """One bad image in each split: named and fatal, or left out and counted so."""
    from cnnbench.errors import DataError

    root = image_folder(folder / "images")
    bad = {split: root / split / "a" / name for split in ("train", "test")}
    for path in bad.values():
        path.write_bytes(data())
    counts, skipped, _ = _read_all(root, "skip")
    check(counts == {"train": 8, "test": 6}, f"counted {counts}")
    check(skipped == {split: (f"{split}/a/{name}",) for split in bad}, f"skipped {skipped}")
    for split, path in bad.items():
        try:
            _read_all(root, "fail")
        except DataError as error:
            check(error.exit_code == 3 and str(path) in str(error), f"{path} is not in {error}")
            path.unlink()
        else:
            raise AssertionError(f"a bad image of {split} was let through")
    check(_read_all(root, "fail")[0] == {"train": 8, "test": 6}, "the others are not all there")


def odd_image(
    name: str, data: Callable[[], bytes], colour: tuple[int, ...], folder: Path, _: random.Random
) -> None:
    """One odd image in each split: read, with its colour, whatever the policy."""
    root = image_folder(folder / "images")
    for split in ("train", "test"):
        (root / split / "a" / name).write_bytes(data())
    for policy in ("fail", "skip"):
        counts, skipped, found = _read_all(root, policy)
        check(counts == {"train": 9, "test": 7}, f"counted {counts}")
        check(not any(skipped.values()), f"skipped {skipped}")
        odd = [x for x in found if np.abs(x.astype(int) - COLOUR).max() > 12]
        if colour == COLOUR:
            check(not odd, f"read as {[x.mean(axis=(0, 1)) for x in odd]}")
        else:
            off = [np.abs(np.median(x, axis=(0, 1)) - colour).max() for x in odd]
            check(len(odd) == 2 and max(off) <= 12, f"read off by {off}")


def _folder_recipe(root: Path, policy: str) -> str:
    return (
        f"name: f\nmodel: {{name: lenet5}}\ndata: {{name: image_folder, path: {root}, "
        f"batch_size: 4, image_size: 16, on_bad_image: {policy}}}\n"
        "optimizer: {name: sgd, lr: 0.01}\ntrain: {epochs: 2}\n"
    )


def _all_images(folder: Path) -> tuple[Path, set[str]]:
    root = image_folder(folder / "images")
    bad = set()
    for split in ("train", "test"):
        for name, data in BAD_IMAGES.items():
            (root / split / "b" / name).write_bytes(data())
            bad.add(f"{split}/b/{name}")
        for name, (data, _) in ODD_IMAGES.items():
            (root / split / "a" / name).write_bytes(data())
    return root, bad


def train_and_skip(folder: Path, _: random.Random) -> None:
    """The commands train and eval leave out exactly the bad ones of all."""
    root, bad = _all_images(folder)
    recipe, run = folder / "recipe.yaml", folder / "run"
    recipe.write_text(_folder_recipe(root, "skip"))
    done = cnnbench("train", recipe, "--no-tune", "--run-dir", run)
    check(done.returncode == 0, f"training failed: {done.stderr[-600:]}")
    data = json.loads((run / "environment.json").read_text())["data"]
    in_training = {path for path in bad if path.startswith("train/")}
    check(set(data["skipped_images"]) == in_training, f"skipped {data['skipped_images']}")
    check(data["train_examples"] == 8 + len(ODD_IMAGES), f"{data['train_examples']} examples")
    check(all(Path(path).name in done.stderr for path in in_training), "skipped ones not told")
    done = cnnbench("eval", run, "--json")
    check(done.returncode == 0, f"eval failed: {done.stderr[-600:]}")
    examples = json.loads(done.stdout)["examples"]
    check(examples == 6 + len(ODD_IMAGES), f"evaluated {examples}")


def train_and_fail(folder: Path, _: random.Random) -> None:
    """The command train ends at a bad image, by name."""
    root, bad = _all_images(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(_folder_recipe(root, "fail"))
    done = cnnbench("train", recipe, "--no-tune", "--run-dir", folder / "run")
    check_error(done, 3, str(root / "train/b"))
    check(any(path in done.stderr for path in bad), f"none is named: {done.stderr[-600:]}")


@row(14, "bad images: fail names the file, skip leaves out exactly those", full=30)
def bad_images(count: int) -> Iterator[Try]:
    """Twenty bad images, eight odd ones, and all of them under the real commands."""
    tries: list[Try] = [functools.partial(bad_image, *item) for item in BAD_IMAGES.items()]
    tries += [functools.partial(odd_image, name, *odd) for name, odd in ODD_IMAGES.items()]
    yield from spread([*tries, train_and_skip, train_and_fail], count)
