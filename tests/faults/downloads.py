"""Downloads that are cut off, wrong, offline, or made twice at once."""

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

from .checks import ROOT, as_command, check, check_error, child, flipped, run_child, spread
from .harness import Try, read_all, row

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
    "a bit flipped": _says(len(CONTENT), flipped(CONTENT, HALF)),
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
