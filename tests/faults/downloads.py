"""Downloads and preparations that are cut off, wrong, offline, or made twice at once."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .checks import ROOT, as_command, check, check_error, child, flipped, run_child, spread
from .harness import Try, read_all, row

CONTENT = random.Random(0).randbytes(2_500_000)  # more than two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
Handler = http.server.BaseHTTPRequestHandler
Answer = Callable[[Handler], None]


def fetch() -> None:
    """Downloads a preset that lies at an address."""
    from cnnbench.models.pretrained import presets
    from cnnbench.models.pretrained.preprocessing import TORCHVISION

    presets.CONNECT_SECONDS = 1.5
    presets.PRESETS["x"] = presets.Preset(
        "resnet18", "timm:resnet18", sys.argv[1], DIGEST, "CC0", TORCHVISION
    )
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
    "cut in the middle": _cut(HALF),
    "cut before the last byte": _cut(len(CONTENT) - 1),
    "cut without a length": _without_length(CONTENT[:HALF]),
    "cut in a chunk": chunked_and_cut,
    "length too small": _says(1000),
    "length no number": _says("many", CONTENT[:-1]),
    "a bit flipped": _says(len(CONTENT), flipped(CONTENT, HALF)),
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
        done = run_child(fetch, address, XDG_CACHE_HOME=str(cache))
        check_error(done, 3, address)
        check(not kept(cache), f"kept {list(kept(cache))}")
    with server([good]) as address:
        done = run_child(fetch, address, XDG_CACHE_HOME=str(cache))
        check(done.returncode == 0 and kept(cache) == WHOLE, f"not fetched: {done.stderr[-600:]}")


def offline_with_a_damaged_copy(folder: Path, _: random.Random) -> None:
    """Nobody answers, and the copy at hand is cut off: refused, with the place for a good one."""
    cache = folder / "cache"
    copy = cache / "cnnbench/weights/x.safetensors"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT[:HALF])
    address = "http://127.0.0.1:9/weights.safetensors"
    done = run_child(fetch, address, XDG_CACHE_HOME=str(cache))
    check_error(done, 3, address, str(copy))
    copy.write_bytes(CONTENT)
    done = run_child(fetch, address, XDG_CACHE_HOME=str(cache))
    check(done.returncode == 0, f"the good copy is not taken: {done.stderr[-600:]}")


def two_at_once(answers: Sequence[Answer], folder: Path, _: random.Random) -> None:
    """Two processes fetch the same file; those that are told the truth have it whole."""
    cache = folder / "cache"
    pipe = subprocess.PIPE
    with server(answers) as address:
        started = [
            subprocess.Popen(
                child(fetch, address),
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
        process = subprocess.Popen(child(fetch, address), cwd=ROOT, env=environment)
        check(halfway.wait(30), "nothing was asked for")
        time.sleep(0.3)
        process.kill()
        process.wait()
        check("x.safetensors" not in kept(cache), "the half is taken for the file")
        done = run_child(fetch, address, XDG_CACHE_HOME=str(cache))
    found = kept(cache).get("x.safetensors")
    check(done.returncode == 0 and found == CONTENT, f"not fetched: {done.stderr[-600:]}")


# Of a data set's splits, and the archive that they are prepared from.
EXAMPLES = {"train": 12, "test": 8}
ARCHIVE = "archive.npz"


def prepare() -> None:
    """Opens a data set of TFDS, preparing it first if it is not, and tells what it holds.

    The preparation tells when it is half-way, and stays there until it may go on.
    """
    from cnnbench.backend.lazy import load

    load()
    import tensorflow_datasets as tfds

    from cnnbench.data.open import Access, open_dataset
    from cnnbench.registry.kinds import DATASETS

    folder = Path(sys.argv[1])

    class Archived(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = ARCHIVE

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list("wxyz")),
                }
            )
            keys = ("image", "label")
            return self.dataset_info_from_configs(features=features, supervised_keys=keys)

        def _split_generators(self, manager: Any) -> Any:
            archive = np.load(manager.manual_dir / ARCHIVE)
            return {split: self._generate_examples(archive[split]) for split in archive}

        def _generate_examples(self, images: np.ndarray) -> Any:
            for i, image in enumerate(images):
                if i == len(images) // 2:
                    (folder / f"half-way.{os.getpid()}").touch()
                    while not (folder / "go on").exists():
                        time.sleep(0.01)
                yield i, {"image": image, "label": i % 4}

    def work() -> None:
        spec: Any = DATASETS.spec("tfds", builder="archived")
        dataset = open_dataset(spec, Access(folder / "data", download=False))
        splits = {split: dataset.split(split).source for split in EXAMPLES}
        sys.stdout.write(_held({k: (s.images, s.targets) for k, s in splits.items()}))

    as_command(work)


def _held(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Returns a digest of splits of images and labels, whatever their order."""
    digest = hashlib.sha256()
    for split, (images, labels) in sorted(splits.items()):
        pairs = zip(images, labels, strict=True)
        examples = sorted(image.tobytes() + bytes([label]) for image, label in pairs)
        digest.update(split.encode() + b"".join(examples))
    return digest.hexdigest()


class Preparation:
    """Processes that prepare a data set of their own in a try's folder.

    held: what each has to tell.
    """

    def __init__(self, folder: Path, random: random.Random):
        self.folder, self._started = folder, 0
        draw = np.random.default_rng(random.getrandbits(32))
        images = {k: draw.integers(0, 255, (n, 8, 8, 3), np.uint8) for k, n in EXAMPLES.items()}
        manual = folder / "data/downloads/manual"
        manual.mkdir(parents=True)
        np.savez(manual / ARCHIVE, **images)
        self.held = _held({k: (x, np.arange(len(x)) % 4) for k, x in images.items()})

    def start(self) -> tuple[subprocess.Popen, Path]:
        """Starts a process; returns it and the file that it tells people something in."""
        self._started += 1
        told = self.folder / f"told.{self._started}"
        with told.open("w") as file:
            process = subprocess.Popen(
                child(prepare, self.folder),
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env=os.environ | {"XDG_CACHE_HOME": str(self.folder / "cache")},
            )
        return process, told

    def half_way(self) -> list[int]:
        """Returns the processes that got half-way."""
        return [int(path.suffix[1:]) for path in self.folder.glob("half-way.*")]

    def go_on(self) -> None:
        """Lets those that are half-way, and all later ones, prepare the rest."""
        (self.folder / "go on").touch()

    def check_whole(self, process: subprocess.Popen, told: Path) -> None:
        """Raises unless a process ends well and tells of the whole data set."""
        held, _ = process.communicate(timeout=120)
        check(process.returncode == 0, f"exit code {process.returncode}: {told.read_text()[-600:]}")
        check(held == self.held, "the data set is not what was in the archive")


def _until(holds: Callable[[], object], what: str) -> None:
    """Waits until something holds."""
    end = time.monotonic() + 120
    while not holds():
        check(time.monotonic() < end, what)
        time.sleep(0.01)


def two_prepare(folder: Path, random: random.Random) -> None:
    """Two processes prepare the same data set: one does, the other waits, both have it whole."""
    made = Preparation(folder, random)
    both = [made.start(), made.start()]

    def met() -> bool:
        waiting = any("waiting for it" in told.read_text() for _, told in both)
        return len(made.half_way()) + waiting == 2

    try:
        _until(met, f"they do not meet: {[told.read_text()[-300:] for _, told in both]}")
        made.go_on()
        for process, told in both:
            made.check_whole(process, told)
    finally:
        for process, _ in both:
            process.kill()
            process.wait()
    check(len(made.half_way()) == 1, "both did the work")
    made.check_whole(*made.start())


def killed_in_preparation(folder: Path, random: random.Random) -> None:
    """A process that is killed while it prepares leaves nothing that is taken for the data set."""
    made = Preparation(folder, random)
    process, told = made.start()
    try:
        _until(made.half_way, f"not half-way: {told.read_text()[-300:]}")
    finally:
        process.kill()
        process.wait()
    check(not (folder / "data/archived/1.0.0").exists(), "the half is taken for the data set")
    made.go_on()
    made.check_whole(*made.start())
    check(len(made.half_way()) == 2, "nothing was prepared anew")


@row(16, "downloads cut, wrong, offline, two at once: nothing partial is accepted", full=20)
def downloads(count: int) -> Iterator[Try]:
    """Servers that fail and lie, no server, two processes at once; preparations likewise."""
    tries: list[Try] = [functools.partial(bad_download, answer) for answer in ANSWERS.values()]
    tries += [
        offline_with_a_damaged_copy,
        killed_half_way,
        functools.partial(two_at_once, (slow, slow)),
        functools.partial(two_at_once, (_cut(HALF), slow)),
        two_prepare,
        killed_in_preparation,
    ]
    yield from spread(tries, count)
