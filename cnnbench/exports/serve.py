"""Opens an artifact and serves requests: `python -m cnnbench.exports.serve`; see `process`.

Its arguments are the format, the path, and the handle of the socket that requests come from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.exports.formats.format import Loaded, module_of
from cnnbench.system.measure import INFERENCE_BATCHES, latency_ms, peak_memory_mb
from cnnbench.system.processes import answer_requests

BATCH_SECONDS = 0.25


def outputs(loaded: Loaded, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs for all images by name, float32."""
    if loaded.batch is None:
        return loaded.run(images)
    rows = []
    for start in range(0, len(images), loaded.batch):
        chunk = images[start : start + loaded.batch]
        filled = np.resize(chunk, (loaded.batch, *chunk.shape[1:]))
        rows.append({name: each[: len(chunk)] for name, each in loaded.run(filled).items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def speed(loaded: Loaded, images: np.ndarray) -> dict[str, Any]:
    """Returns the latency of one image, in ms, and the peak memory so far, in MB of 2**20 bytes."""
    one = np.resize(images, (loaded.batch or 1, *images.shape[1:]))
    return {
        "latency_ms": latency_ms(lambda: loaded.run(one)),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def best_batch(loaded: Loaded, images: np.ndarray) -> dict[str, Any]:
    """Returns the batch size of INFERENCE_BATCHES with the highest throughput, and its images/s."""
    rates = {}
    for size in sorted({*INFERENCE_BATCHES, loaded.batch or 1}):
        run = loaded.run if size == loaded.batch else loaded.resized(size)
        batch = np.resize(images, (size, *images.shape[1:]))
        if run is None or any(len(each) != size for each in run(batch).values()):
            continue
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < BATCH_SECONDS:
            run(batch)
            calls += 1
        rates[size] = calls * size / (time.perf_counter() - start)
    size = max(rates, key=lambda size: rates[size])
    return {"batch_size": size, "images_per_s": round(rates[size], 1)}


COMMANDS: dict[str, Callable[[Loaded, np.ndarray], Any]] = {
    "outputs": outputs,
    "speed": speed,
    "best_batch": best_batch,
}


def main(form: str, path: str, handle: str) -> None:
    """Serves requests until the other end closes the connection."""

    def prepare() -> tuple[bool, Callable[[str, np.ndarray], Any]]:
        loaded = module_of(form).load(Path(path))
        return loaded.takes_pixels, partial(_answer, loaded)

    answer_requests(Connection(int(handle)), prepare)


def _answer(loaded: Loaded, command: str, images: np.ndarray) -> Any:
    return COMMANDS[command](loaded, images)


if __name__ == "__main__":
    main(*sys.argv[1:])
