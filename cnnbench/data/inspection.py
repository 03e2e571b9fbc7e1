"""Finds images that cannot be decoded, before training and while it begins."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from cnnbench.data.examples import ArraySource, Examples, FileSource, Source
from cnnbench.errors import DataError, shortened

# Longest time to decode images before training; the rest is decoded while it runs, by one thread
# that rests RESTING times as long as it works.
SECONDS, RESTING = 5.0, 3
ADVICE = (
    "Replace or remove them, or leave them out with data.on_bad_image: skip. A run that has begun "
    "goes on with --resume --accept-data-change FILE."
)
ADVICE_ON_RECORDS = "Leave them out with data.on_bad_image: skip, or prepare the data set anew."


def may_be_damaged(head: bytes, tail: bytes, size: int) -> bool:
    """Returns whether a file's ends are not those of a whole image, so that it must be decoded.

    Args:
        head: its first bytes, at least 16 if it has so many.
        tail: its last bytes.
        size: of the file in bytes.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" not in tail
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in tail
    if head.startswith((b"GIF87a", b"GIF89a")):
        return b";" not in tail[-16:]
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 > size
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") > size
    if head.startswith((b"II*\0", b"MM\0*")):
        return int.from_bytes(head[4:8], "little" if head[:1] == b"I" else "big") >= size
    return not head.startswith(
        (b"II+\0", b"MM\0+", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7")
    )


class Inspection:
    """Decodes images that are decoded when they are read, once, to find those that cannot be.

    Files whose ends look damaged come first, then the parts in the order in which they are given.

    Args:
        parts: the examples; those of image files and of records are decoded.
        seconds: longest time that `begin` takes.
    """

    def __init__(self, parts: Sequence[Examples], seconds: float = SECONDS):
        parts = [part for part in parts if not isinstance(part.source, ArraySource)]
        of_files = all(isinstance(part.source, FileSource) for part in parts)
        self._advice = ADVICE if of_files else ADVICE_ON_RECORDS
        self._seconds, self._count = seconds, sum(map(len, parts))
        self._todo = _in_order(parts)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._done, self._bad, self._errors = 0, list[str](), list[Exception]()

    def begin(self) -> list[str]:
        """Decodes images for some seconds, with all cores.

        Returns:
            Lines on how many were decoded; none if all were.

        Raises:
            DataError: some cannot be decoded; it names the first.
            Exception: another error of one of the threads, such as a UsageError if
                `data.value_range` must be set.
        """
        start = time.monotonic()
        workers = [
            threading.Thread(target=self._work, args=(start + self._seconds,), daemon=True)
            for _ in range(max(2, os.cpu_count() or 2))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failure := self.failure():
            raise failure
        if self._done == self._count:
            return []
        each_ms = 1000 * (time.monotonic() - start) / max(1, self._done)
        return [
            f"images: {self._done:,} of {self._count:,} were decoded as a check, {each_ms:.2g} ms "
            "each; the rest is while training runs"
        ]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Decodes the rest in the background, until the end of the context."""
        worker = threading.Thread(
            target=self._work, args=(None,), name="cnnbench-inspect", daemon=True
        )
        worker.start()
        try:
            yield
        finally:
            self._stopped.set()
            worker.join()

    def failure(self, error: DataError | None = None) -> Exception | None:
        """Returns the error to end with, if images were found that cannot be used.

        Args:
            error: of another image, which was read otherwise.

        Returns:
            A DataError that says how many images cannot be decoded, and names the first; else
            another error of one of the threads, if there was one; else None.
        """
        with self._lock:
            bad = list(dict.fromkeys([*([str(error)] if error else []), *self._bad]))
            done, others = self._done, self._errors
        if not bad:
            return next(iter(others), None)
        head = f"{len(bad)} of {done:,} images looked at cannot be used:"
        return DataError("\n".join([head, *shortened(bad), self._advice]))

    def _work(self, until: float | None) -> None:
        while not self._stopped.is_set():
            start = time.monotonic()
            if until is not None and start > until:
                return
            with self._lock:
                source, index = next(self._todo, (None, 0))
            if source is None:
                return
            try:
                source.read(index)
            except DataError as error:
                with self._lock:
                    self._bad.append(str(error))
            except Exception as error:  # not only the expected UsageError: `failure` returns any
                with self._lock:
                    self._errors.append(error)
                return
            with self._lock:
                self._done += 1
            if until is None:
                self._stopped.wait(RESTING * (time.monotonic() - start))


def _in_order(parts: Sequence[Examples]) -> Iterator[tuple[Source | None, int]]:
    """Yields the source and index of each example, the doubtful ones first."""
    doubtful = []
    for part in parts:
        known = part.source.doubtful if isinstance(part.source, FileSource) else ()
        doubtful.append(np.isin(part.indices, known))
    for wanted, (part, is_doubtful) in itertools.product(
        (True, False), zip(parts, doubtful, strict=True)
    ):
        for index in part.indices[is_doubtful == wanted]:
            yield part.source, int(index)
