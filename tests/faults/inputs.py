"""Input that is broken or means harm: images, records, downloads, recipes, models."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnbench import checkpoint

from .disks import ROOT, as_command, check, check_error, cnnbench, spread
from .harness import Try, read_all, row


def child(function: str, *arguments: object) -> list[str]:
    """Returns the command that calls a function of this module in a process of its own."""
    call = f"from tests.faults import inputs; inputs.{function}()"
    return [sys.executable, "-c", call, *map(str, arguments)]


def run_child(function: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Calls a function of this module in a process of its own."""
    command = child(function, *arguments)
    environment = os.environ | environment
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )


# Images

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


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


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
    "header.png": lambda: _flipped(noise("PNG"), 18),
    "pixels.png": lambda: _flipped(noise("PNG"), 2000),
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
    from cnnbench.data.datasets import Access, open_dataset
    from cnnbench.data.pipeline import evaluation_batches, evaluation_examples, training_splits
    from cnnbench.parts import DATASETS

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
    check(skipped == {split: (str(path),) for split, path in bad.items()}, f"skipped {skipped}")
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
            bad.add(str(root / split / "b" / name))
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
    in_training = {path for path in bad if "/train/" in path}
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


# Records

VERSION = "1.0.0"
SHARD = "train.tfrecord-00000-of-00001"


def make_records() -> None:
    """Prepares two data sets by TFDS, with images of one size and of several."""
    from cnnbench.lazy import load

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
    from cnnbench.lazy import tf

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
    from cnnbench.data.datasets import Access, open_dataset
    from cnnbench.data.pipeline import evaluation_batches, evaluation_examples, training_splits
    from cnnbench.parts import DATASETS

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
    done = run_child("make_records", held.name)
    check(done.returncode == 0, f"TFDS prepared nothing: {done.stderr[-600:]}")
    for name in ("fixed", "varied"):
        done = run_child("read_records", held.name, name, XDG_CACHE_HOME=held.name)
        check(done.returncode == 0, f"whole records are not read: {done.stderr[-600:]}")
    return held


def _harm_bytes(harm: str, file: Path) -> None:
    from cnnbench.data.tfds_source import _index

    data, places = bytearray(file.read_bytes()), _index(file)
    offset, size = (int(value) for value in places[3])
    last = int(places[-1][0])
    if harm == "bit":
        data[offset + size // 2] ^= 4
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
        done = run_child("change_record", file, harm)
        check(done.returncode == 0, f"the record cannot be changed: {done.stderr[-600:]}")
    else:
        _harm_bytes(harm, file)
    done = run_child("read_records", folder, name, XDG_CACHE_HOME=str(folder / "cache"))
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


# Downloads

CONTENT = random.Random(0).randbytes(2_500_000)  # more than two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
Handler = http.server.BaseHTTPRequestHandler
Answer = Callable[[Handler], None]


def fetch() -> None:
    """Downloads a preset that lies at an address."""
    from cnnbench import presets

    presets.CONNECT_SECONDS = 1.5
    presets.PRESETS["x"] = presets.Preset("resnet18", sys.argv[1], DIGEST, "CC0")
    as_command(lambda: presets.download("x"))


def _headers(handler: Handler, **fields: object) -> None:
    handler.send_response(200)
    for key, value in fields.items():
        handler.send_header(key.replace("_", "-"), str(value))
    handler.end_headers()


def good(handler: Handler) -> None:
    """The file, as it should be."""
    _headers(handler, Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT)


def slow(handler: Handler) -> None:
    """The file, in pieces."""
    _headers(handler, Content_Length=len(CONTENT))
    for start in range(0, len(CONTENT), 100_000):
        handler.wfile.write(CONTENT[start : start + 100_000])
        time.sleep(0.05)


def _cut(at: int) -> Answer:
    def answer(handler: Handler) -> None:
        _headers(handler, Content_Length=len(CONTENT))
        handler.wfile.write(CONTENT[:at])

    return answer


def _says(length: object, body: bytes = CONTENT) -> Answer:
    def answer(handler: Handler) -> None:
        _headers(handler, Content_Length=length)
        handler.wfile.write(body)

    return answer


def _without_length(body: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        _headers(handler)
        handler.wfile.write(body)

    return answer


def chunked_and_cut(handler: Handler) -> None:
    """A chunk that is shorter than it says."""
    _headers(handler, Transfer_Encoding="chunked")
    handler.wfile.write(f"{len(CONTENT):x}\r\n".encode() + CONTENT[:HALF])


def stalled(handler: Handler) -> None:
    """Half of the file, and then silence."""
    _cut(HALF)(handler)
    handler.wfile.flush()
    time.sleep(5)


def nonsense(handler: Handler) -> None:
    """No HTTP at all."""
    handler.wfile.write(b"\x00\x01nonsense\r\n\r\n" + CONTENT[:1000])


def closed(handler: Handler) -> None:
    """Not a byte."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def _status(code: int, location: str = "") -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        if location:
            handler.send_header("Location", location)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    return answer


ANSWERS: dict[str, Answer] = {
    "cut at once": _cut(0),
    "cut after a byte": _cut(1),
    "cut in the middle": _cut(HALF),
    "cut before the last byte": _cut(len(CONTENT) - 1),
    "cut without a length": _without_length(CONTENT[:HALF]),
    "cut in a chunk": chunked_and_cut,
    "length too small": _says(1000),
    "length no number": _says("many", CONTENT[:-1]),
    "a bit flipped": _says(len(CONTENT), _flipped(CONTENT, HALF)),
    "a page to log in": _without_length(b"<html>log in</html>"),
    "stalled": stalled,
    "no HTTP": nonsense,
    "closed": closed,
    "not found": _status(404),
    "to a file": _status(302, f"file://{Path(__file__).resolve()}"),
    "in a circle": _status(302, "/weights.safetensors"),
}


@contextmanager
def server(answers: Sequence[Answer]) -> Iterator[str]:
    """Yields the address of a file that is answered for in turn; the last answer stays."""
    left = list(answers)

    class One(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            try:
                answer(self)
            except ConnectionError:  # the other side had enough
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), One)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/weights.safetensors"
    finally:
        running.shutdown()
        running.server_close()


def kept(cache: Path) -> dict[str, bytes]:
    """Returns the files in a cache of weights."""
    return read_all(cache / "cnnbench/weights")


WHOLE = {"x.safetensors": CONTENT}


def bad_download(answer: Answer, folder: Path, _: random.Random) -> None:
    """A download that is not the file: refused, nothing kept, and the next one works."""
    cache = folder / "cache"
    with server([answer]) as address:
        done = run_child("fetch", address, XDG_CACHE_HOME=str(cache))
        check_error(done, 3, address)
        check(not kept(cache), f"kept {list(kept(cache))}")
    with server([good]) as address:
        done = run_child("fetch", address, XDG_CACHE_HOME=str(cache))
        check(done.returncode == 0 and kept(cache) == WHOLE, f"not fetched: {done.stderr[-600:]}")


def offline_with_a_damaged_copy(folder: Path, _: random.Random) -> None:
    """Nobody answers, and the copy at hand is cut off: refused, with the place for a good one."""
    cache = folder / "cache"
    copy = cache / "cnnbench/weights/x.safetensors"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT[:HALF])
    address = "http://127.0.0.1:9/weights.safetensors"
    done = run_child("fetch", address, XDG_CACHE_HOME=str(cache))
    check_error(done, 3, address, str(copy))
    copy.write_bytes(CONTENT)
    done = run_child("fetch", address, XDG_CACHE_HOME=str(cache))
    check(done.returncode == 0, f"the good copy is not taken: {done.stderr[-600:]}")


def two_at_once(answers: Sequence[Answer], folder: Path, _: random.Random) -> None:
    """Two processes fetch the same file; those that are told the truth have it whole."""
    cache = folder / "cache"
    pipe = subprocess.PIPE
    with server(answers) as address:
        started = [
            subprocess.Popen(
                child("fetch", address),
                stdout=pipe,
                stderr=pipe,
                text=True,
                cwd=ROOT,
                env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            )
            for _ in range(2)
        ]
        ended = [process.communicate(timeout=60)[1] for process in started]
    codes = sorted(process.returncode for process in started)
    expected = [0 if answer in (good, slow) else 3 for answer in answers]
    check(codes == sorted(expected), f"exit codes {codes}: {ended}")
    check(kept(cache) == WHOLE, f"kept {list(kept(cache))}")


def killed_half_way(folder: Path, _: random.Random) -> None:
    """A process that is killed while it fetches leaves nothing that is taken for the file."""
    cache = folder / "cache"
    halfway = threading.Event()

    def answer(handler: Handler) -> None:
        _cut(HALF)(handler)
        handler.wfile.flush()
        halfway.set()
        time.sleep(1)

    with server([answer, good]) as address:
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.Popen(child("fetch", address), cwd=ROOT, env=environment)
        check(halfway.wait(30), "nothing was asked for")
        time.sleep(0.3)
        process.kill()
        process.wait()
        check("x.safetensors" not in kept(cache), "the half is taken for the file")
        done = run_child("fetch", address, XDG_CACHE_HOME=str(cache))
    found = kept(cache).get("x.safetensors")
    check(done.returncode == 0 and found == CONTENT, f"not fetched: {done.stderr[-600:]}")


@row(16, "downloads cut, wrong, offline, two at once: nothing partial is accepted", full=20)
def downloads(count: int) -> Iterator[Try]:
    """Servers that fail and lie, no server, and two processes at once."""
    tries: list[Try] = [functools.partial(bad_download, answer) for answer in ANSWERS.values()]
    tries += [
        offline_with_a_damaged_copy,
        killed_half_way,
        functools.partial(two_at_once, (slow, slow)),
        functools.partial(two_at_once, (_cut(HALF), slow)),
    ]
    yield from spread(tries, count)


# Recipes and models that mean harm

MAX_SECONDS, MAX_MB, MAX_OUTPUT = 2.0, 500.0, 20_000
# Where a process that goes wrong is ended; what is allowed is measured, not enforced.
CAP_SECONDS, CAP_BYTES = 6, 2 * 1024**3
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CODE = {f"os.{name}" for name in ("system", "exec", "posix_spawn", "fork")}
CODE |= {"subprocess.Popen", "pickle.find_class"}
CHANGES = {
    f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "symlink", "link", "truncate")
}


def hostile() -> None:
    """Does what the arguments say, and writes what it took and did that it should not.

    Arguments: a file for the report, the only folder to write in, what to do, its arguments.
    """
    report, allowed, action, *arguments = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (CAP_SECONDS, CAP_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (CAP_BYTES, CAP_BYTES))
    seen: list[str] = []

    def outside(*paths: object) -> bool:
        full = [os.path.realpath(path) for path in paths if isinstance(path, str | os.PathLike)]
        return any(not path.startswith(f"{allowed}/") and path != os.devnull for path in full)

    def hook(event: str, values: tuple) -> None:
        # Python's own platform module asks uname.
        if event in CODE and values[0] != "uname":
            seen.append(f"{event} {values}"[:200])
        elif event == "open" and isinstance(values[2], int):
            writes = values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not values[2] & os.O_NOFOLLOW and outside(values[0]):
                seen.append(f"opened {values[0]!r} to write")
        elif event in CHANGES and outside(*values):
            seen.append(f"{event} {values}")

    sys.addaudithook(hook)
    try:
        ACTIONS[action](*arguments)
    finally:
        done = list(seen)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        taken = {"seconds": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}
        Path(report).write_text(json.dumps(taken | {"seen": done}))


def _command(*arguments: str) -> None:
    from cnnbench import cli

    cli.main(arguments)


class _Bias:
    """Stands for a network's only weight."""

    path, shape = "logits/bias", (16,)

    def assign(self, values: np.ndarray) -> None:
        """Takes any values."""


class _Network:
    """Stands for a network, which would need TensorFlow."""

    name, output_shape, weights = "vgg16", (None, 16), (_Bias(),)


def _weights(path: str) -> None:
    from cnnbench.weights import load_published

    as_command(lambda: load_published(_Network(), "vgg16", Path(path)))


def _checkpoint(path: str) -> None:
    as_command(lambda: checkpoint.newest(Path(path) / "checkpoints"))


def _run(path: str) -> None:
    from cnnbench import run as runs

    def work() -> None:
        found = runs.open_run(path)
        found.data()
        found.metrics()
        with found.locked():
            pass

    as_command(work)


def _show(path: str) -> None:
    """Prints a recipe as `show` does, without the network, and writes it as `train` does."""
    from cnnbench import cli, tables
    from cnnbench.recipe import load_recipe

    def work() -> None:
        text = load_recipe(path).dump()
        cli._answer({"facts": {}, "stages": [], "recipe": text}, False, tables.model)
        Path("recipe_again.yaml").write_bytes(text.encode())

    as_command(work)


ACTIONS: dict[str, Callable[..., None]] = {
    "command": _command,
    "weights": _weights,
    "checkpoint": _checkpoint,
    "run": _run,
    "show": _show,
}

# Makes what is hostile in a folder and returns the action and its arguments.
Make = Callable[[Path], Sequence[object]]
SECRET = "secret-9f2c"


def harmless(make: Make, codes: tuple[int, ...], folder: Path, _: random.Random) -> None:
    """Feeds something hostile to the tool, which refuses it quickly and does nothing else."""
    folder = folder.resolve()
    work, outside = folder / "work", folder / "outside"
    for place in (work, outside, work / "tmp"):
        place.mkdir()
    (outside / "secret.txt").write_text(SECRET * 20)
    Image.new("RGB", (9, 9)).save(outside / "image.png")
    action = make(work)
    before = read_all(outside)
    report = folder / "report.json"
    names = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
    environment = os.environ | {name: str(work / place) for name, place in names.items()}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        child("hostile", report, work, *action),
        capture_output=True,
        cwd=work,
        env=environment,
        timeout=20,
    )
    output, error = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    said = f"{output}{error}"
    check("Traceback" not in said, f"a traceback: …{said[-400:]}")
    check(done.returncode in codes, f"exit code {done.returncode}: {said[:400]}")
    if done.returncode:
        check(error.startswith("error: "), f"not one block of error: {error[:400]}")
        check(error.count("\nerror: ") == 0 and not output, f"more than an error: {said[:400]}")
    check(len(said) <= MAX_OUTPUT, f"{len(said)} characters of output: {said[:200]}")
    if found := CONTROL.search(said):
        near = said[max(0, found.start() - 60) : found.end() + 20]
        raise AssertionError(f"a raw control character: {near!r}")
    check(SECRET not in said, f"the secret is told: {said[:400]}")
    taken = json.loads(report.read_text())
    check(taken["seconds"] <= MAX_SECONDS, f"{taken['seconds']:.1f} s of processor time")
    check(taken["mb"] <= MAX_MB, f"{taken['mb']:.0f} MB")
    check(not taken["seen"], f"it did {taken['seen']}")
    check(read_all(outside) == before, "files outside changed")
    check(not (outside / "pwned").exists(), "code ran")


PWN = 'import os; os.system("touch ../outside/pwned")'
ESC = r"\e]0;pwned\a\e[31m"
# What stands for each section unless a recipe has another text for it.
SECTIONS = {
    "name": "bad",
    "seed": "0",
    "model": "{name: lenet5}",
    "data": "{name: digits, batch_size: 32, image_size: 32}",
    "optimizer": "{name: sgd, lr: 0.1}",
    "train": "{epochs: 1}",
}


def recipe(extra: str = "", **sections: str) -> bytes:
    """A recipe that is right but for the sections given and the text added."""
    lines = [f"{key}: {value}" for key, value in (SECTIONS | sections).items()]
    return ("\n".join(lines) + f"\n{extra}\n").encode()


def data(options: str) -> str:
    """A section of made-up images, which is right but for the options."""
    return f"{{name: synthetic, batch_size: 32, {options}}}"


def _folder_data(path: str) -> str:
    return f"{{name: image_folder, path: {path}, batch_size: 2, image_size: 32}}"


_TAG = "tag:yaml.org,2002:python/object/apply:os.system"
_LAUGHS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12))
RECIPES: dict[str, bytes] = {
    # Tags and aliases
    "tag apply": recipe(seed='!!python/object/apply:os.system ["touch ../outside/pwned"]'),
    "tag new": recipe(seed='!!python/object/new:os.system ["touch ../outside/pwned"]'),
    "tag name": recipe(seed="!!python/name:os.system"),
    "tag module": recipe(seed='!!python/module:antigravity ""'),
    "tag verbatim": recipe(seed=f'!<{_TAG}> ["touch ../outside/pwned"]'),
    "tag directive": f"%TAG ! {_TAG}\n---\n".encode() + recipe(seed='!x ["touch pwned"]'),
    "tag binary": recipe(name="!!binary aGVsbG8="),
    "tag of a key": recipe("? !!python/tuple [a, b]\n: 1"),
    "billion laughs": b"l0: &l0 [x, x]\n" + _LAUGHS.encode() + b"\n" + recipe(),
    "alias of itself": recipe("x: &x [*x]"),
    "merge key": recipe("base: &b {seed: 3}\nmore:\n  <<: *b"),
    "merge without alias": recipe("<<: {seed: 3}"),
    "anchor": recipe(seed="&a 0"),
    # Depth
    "deep lists": recipe(seed="[" * 100_000),
    "deep mappings": recipe(seed="{a: " * 50_000),
    "deep blocks": recipe("x: \n  " + "- " * 100_000 + "x"),
    "deep keys": recipe("? " * 50_000 + "x"),
    "deep sections": recipe("\n".join(" " * i + "a:" for i in range(600))),
    # Size
    "too many bytes": recipe("# " + "x" * 300_000),
    "huge word": recipe(name="x" * 200_000),
    "huge key": recipe("k" * 200_000 + ": 1"),
    "huge model name": recipe(model="{name: " + "l" * 200_000 + "}"),
    "huge integer": recipe(seed="9" * 200_000),
    "integer of 30 digits": recipe(train="{steps: 999999999999999999999999999999}"),
    "examples of 30 digits": recipe(train="{examples: 999999999999999999999999999999}"),
    "huge exponent": recipe(optimizer="{name: sgd, lr: 1e999999999}"),
    "endless epochs": recipe(data=data("examples: 64"), train="{epochs: 1.0e308}"),
    "huge batch": recipe(data="{name: synthetic, batch_size: 99999999999999999999}"),
    "terabytes of images": recipe(data=data("examples: 10000000, shape: [4096, 4096, 3]")),
    "gigabytes of images": recipe(data=data("examples: 50000, shape: [512, 512, 3]")),
    "huge validation": recipe(data=data("validation: 99999999999999999999")),
    "many unknown keys": recipe("\n".join(f"k{i}: 1" for i in range(20_000))),
    "many unknown parts": recipe("augment: [" + "{name: x}, " * 15_000 + "]"),
    "many duplicates": recipe("\n".join("a: 1" for _ in range(30_000))),
    "many words": recipe("x: [" + "a," * 100_000 + "]"),
    "many numbers": recipe(data="{name: digits, mean: [" + "0.5," * 40_000 + "]}"),
    # Paths
    "name leaves": recipe(name="../../outside/pwned"),
    "name absolute": recipe(name="/tmp/pwned"),
    "name with a line": recipe(name=r'"bad\n../x"'),
    "path to nowhere": recipe(data=_folder_data("../../../../../../proc/self")),
    "path with NUL": recipe(data=_folder_data(r'"images\0/etc"')),
    "builder leaves": recipe(data="{name: tfds, builder: ../../outside}"),
    "weights leave": recipe(model="{name: lenet5, weights: ../outside/secret.txt}"),
    # Terminals
    "escape in name": recipe(name=f'"{ESC}"'),
    "escape in path": recipe(data=_folder_data(f'"{ESC}"')),
    "escape in key": recipe(f'"{ESC}": 1'),
    "escape in model": recipe(model=f'{{name: "{ESC}"}}'),
    "escape in weights": recipe(model=f'{{name: lenet5, weights: "{ESC}.pth"}}'),
    "C1 and returns": recipe(data=_folder_data(r'"\x9b31mx\r\x85error: fine"')),
    "turned writing": recipe(data=_folder_data(r'"\u202egpj.exe"')),
    "markup in path": recipe(data=_folder_data('"[red]x[/nothing]"')),
    # Encodings
    "NUL bytes": recipe() + bytes(100),
    "UTF-16": recipe().decode().encode("utf-16"),
    "UTF-16 unmarked": recipe().decode().encode("utf-16-le"),
    "UTF-32": recipe().decode().encode("utf-32"),
    "mark and a fault": b"\xef\xbb\xbf" + recipe("unknown: 1"),
    "half a pair": recipe(data=_folder_data(r'"\ud800"')),
}


def _train(text: bytes, work: Path) -> Sequence[object]:
    (work / "recipe.yaml").write_bytes(text)
    return ("command", "train", "recipe.yaml", "--no-tune")


def _shown(extra: str, work: Path) -> Sequence[object]:
    (work / "recipe.yaml").write_bytes(recipe(extra))
    return ("show", "recipe.yaml")


def _linked(target: str, work: Path) -> Sequence[object]:
    (work / "recipe.yaml").symlink_to(target)
    return ("command", "train", "recipe.yaml", "--no-tune")


def _pipe(work: Path) -> Sequence[object]:
    os.mkfifo(work / "recipe.yaml")
    return ("command", "train", "recipe.yaml", "--no-tune")


def _deep_setting(work: Path) -> Sequence[object]:
    return (*_train(recipe(), work), "--set", ".".join("a" * 5_000) + "=1")


def _folder(harm: Callable[[Path], None], work: Path) -> Sequence[object]:
    harm(image_folder(work / "images"))
    return _train(recipe(data=_folder_data("images")), work)


def _strange_class(root: Path) -> None:
    (root / "test" / "\x1b]0;pwned\x07\x1b[31m[red]").mkdir()


def _strange_image(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.rename(path.with_name(f"\x1b]0;pwned\x07{path.name}"))
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")


def _linked_images(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.unlink()
        path.symlink_to("../../../../outside/secret.txt")


def _linked_class(root: Path) -> None:
    (root / "train/c").symlink_to("/")


FOLDERS = {
    "escape in a class": _strange_class,
    "escape in an image": _strange_image,
    "images that are links": _linked_images,
    "a class that is the root": _linked_class,
}


def _h5(build: Callable[[Any, Any], None], work: Path) -> Sequence[object]:
    """A file that Keras might have written, with one layer that fits."""
    import h5py

    path = work / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"predictions"]
        group = file.create_group("predictions")
        group.attrs["weight_names"] = [b"predictions/bias:0"]
        inner = group.create_group("predictions")
        build(file, inner)
    return ("weights", path)


def _external_link(file: Any, group: Any) -> None:
    import h5py

    other = Path(file.filename).parents[1] / "outside/other.h5"
    with h5py.File(other, "w") as elsewhere:
        elsewhere["bias"] = np.zeros(16, np.float32)
    group["bias:0"] = h5py.ExternalLink(str(other), "/bias")


def _external_storage(file: Any, group: Any) -> None:
    secret = Path(file.filename).parents[1] / "outside/secret.txt"
    group.create_dataset("bias:0", (16,), np.float32, external=[(str(secret), 0, 64)])


def _virtual(file: Any, group: Any) -> None:
    import h5py

    other = Path(file.filename).parents[1] / "outside/other.h5"
    with h5py.File(other, "w") as elsewhere:
        elsewhere["bias"] = np.zeros(16, np.float32)
    layout = h5py.VirtualLayout((16,), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "bias", (16,))
    group.create_virtual_dataset("bias:0", layout)


def _compressed(file: Any, group: Any) -> None:
    size = (300, 1024, 1024)
    made = group.create_dataset("bias:0", size, np.float32, chunks=(1, 1024, 1024), compression=9)
    chunk = zlib.compress(bytes(4 * 1024**2), 9)
    for i in range(size[0]):
        made.id.write_direct_chunk((i, 0, 0), chunk)


def _unallocated(file: Any, group: Any) -> None:
    group.create_dataset("bias:0", (400_000_000,), np.float32, chunks=(1000,))


def _loop(file: Any, group: Any) -> None:
    import h5py

    group["bias:0"] = h5py.SoftLink("/predictions/predictions/bias:0")


def _lambda(file: Any, group: Any) -> None:
    code = {"class_name": "Lambda", "config": {"function": ["X", PWN], "module": "builtins"}}
    file.attrs["model_config"] = json.dumps({"config": {"layers": [code]}})
    group["gamma:0"] = np.zeros(16, np.float32)


class _Evil:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch ../outside/pwned",))


def _pickled(name: str, work: Path) -> Sequence[object]:
    (work / name).write_bytes(pickle.dumps(_Evil()))
    return ("weights", work / name)


def _safetensors(header: object, body: bytes, work: Path) -> Sequence[object]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = work / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return ("weights", path)


def _tensor(start: int, end: int, *shape: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


def _long_header(work: Path) -> Sequence[object]:
    path = work / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    return ("weights", path)


def _sparse(work: Path) -> Sequence[object]:
    size = 4 * 400_000_000
    found = _safetensors({"classifier.6.bias": _tensor(0, size, size // 4)}, b"", work)
    with Path(str(found[1])).open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + size)
    return found


def _keras_bomb(work: Path) -> Sequence[object]:
    with zipfile.ZipFile(work / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(10**8))
    return _train(recipe(model="{name: resnet18, weights: bomb.keras}"), work)


def _tar_leaves(work: Path) -> Sequence[object]:
    with tarfile.open(work / "weights.safetensors", "w") as archive:
        archive.add(__file__, "../outside/pwned")
    return ("weights", work / "weights.safetensors")


def _saved(work: Path) -> Path:
    from cnnbench.checkpoint import Checkpoint

    folder = work / "run/checkpoints/7"
    checkpoint.save(folder, Checkpoint({"model/0/w": np.zeros(16, np.float32)}, {"step": 7}))
    return folder


def _manifest(change: Callable[[dict[str, Any]], None], work: Path) -> Sequence[object]:
    """A checkpoint whose manifest was changed by one who knows how to sign it."""
    path = _saved(work) / checkpoint.MANIFEST
    body = json.loads(path.read_text())
    del body["sha256"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(body | {"sha256": digest}))
    return ("checkpoint", work / "run")


def _reads_a_device(body: dict[str, Any]) -> None:
    body["files"]["../../../../../../../../../../dev/zero"] = "0" * 64


def _reads_a_secret(body: dict[str, Any]) -> None:
    name = "../../../../outside/secret.txt"
    body["files"][name] = hashlib.sha256((SECRET * 20).encode()).hexdigest()


def _manifest_text(text: str, work: Path) -> Sequence[object]:
    (_saved(work) / checkpoint.MANIFEST).write_text(text)
    return ("checkpoint", work / "run")


def _state_is_a_list(body: dict[str, Any]) -> None:
    body["state"] = ["step", 7]


def _linked_arrays(work: Path) -> Sequence[object]:
    arrays = _saved(work) / checkpoint.ARRAYS
    arrays.unlink()
    arrays.symlink_to("/dev/zero")
    return ("checkpoint", work / "run")


def _lock_leaves(work: Path) -> Sequence[object]:
    from .disks import make_run

    make_run(work / "run")
    (work / "run/lock").symlink_to("../../outside/secret.txt")
    return ("run", work / "run")


def _environment(text: str, work: Path) -> Sequence[object]:
    from .disks import make_run

    make_run(work / "run")
    (work / "run/environment.json").write_text(text)
    return ("run", work / "run")


DEEP = "[" * 100_000 + "]" * 100_000
MODELS: dict[str, Make] = {
    "h5 with a Lambda": functools.partial(_h5, _lambda),
    "h5 with an external link": functools.partial(_h5, _external_link),
    "h5 stored elsewhere": functools.partial(_h5, _external_storage),
    "h5 that is virtual": functools.partial(_h5, _virtual),
    "h5 that inflates": functools.partial(_h5, _compressed),
    "h5 of nothing": functools.partial(_h5, _unallocated),
    "h5 in a circle": functools.partial(_h5, _loop),
    "pickle as h5": functools.partial(_pickled, "weights.h5"),
    "pickle as safetensors": functools.partial(_pickled, "weights.safetensors"),
    "pickle": functools.partial(_pickled, "weights.pth"),
    "safetensors, long header": _long_header,
    "safetensors, deep header": functools.partial(_safetensors, DEEP.encode(), b""),
    "safetensors, overlapping": functools.partial(
        _safetensors,
        {"a": _tensor(0, 64, 16), "classifier.6.bias": _tensor(32, 96, 16)},
        bytes(96),
    ),
    "safetensors, beyond the end": functools.partial(
        _safetensors, {"classifier.6.bias": _tensor(0, 2**40, 2**38)}, bytes(64)
    ),
    "safetensors, sparse": _sparse,
    "keras that inflates": _keras_bomb,
    "tar that leaves": _tar_leaves,
    "checkpoint reads a device": functools.partial(_manifest, _reads_a_device),
    "checkpoint reads outside": functools.partial(_manifest, _reads_a_secret),
    "checkpoint, deep": functools.partial(_manifest_text, DEEP),
    "checkpoint, no mapping": functools.partial(_manifest_text, "[1, 2]"),
    "checkpoint, state no mapping": functools.partial(_manifest, _state_is_a_list),
    "checkpoint, endless arrays": _linked_arrays,
    "lock leaves": _lock_leaves,
    "environment, deep": functools.partial(_environment, DEEP),
}


@row(20, "hostile recipes and models: refused at once, nothing run or written", full=90, short=9)
def hostile_input(count: int) -> Iterator[Try]:
    """Each is refused with exit code 2, 3 or 6; those that only look strange may be shown."""
    refused: dict[str, Make] = {
        name: functools.partial(_train, text) for name, text in RECIPES.items()
    }
    refused |= {name: functools.partial(_folder, harm) for name, harm in FOLDERS.items()}
    refused |= {
        "recipe without end": functools.partial(_linked, "/dev/zero"),
        "recipe is a folder": functools.partial(_linked, "."),
        "recipe is a pipe": _pipe,
        "deep setting": _deep_setting,
        "half a pair in a text": functools.partial(
            _shown, r'target: {top1: 0.5, source: "\ud800"}'
        ),
    }
    refused |= MODELS
    shown: dict[str, Make] = {
        "escape in a text": functools.partial(
            _shown, f'target: {{top1: 0.5, source: "{ESC} in a text"}}'
        ),
        "markup in a text": functools.partial(
            _shown, 'target: {top1: 0.5, source: "[red]x[/nothing]"}'
        ),
    }
    tries: list[Try] = [functools.partial(harmless, make, (2, 3, 6)) for make in refused.values()]
    tries += [functools.partial(harmless, make, (0,)) for make in shown.values()]
    yield from spread(tries, count)
