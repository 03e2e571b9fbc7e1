"""Opens an artifact and answers, as a process of its own: `python -m cnnbench.exports.serve`.

It is told what to open by its arguments, a format and a path, and what to do through the socket of
the third. See `process`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.exports.formats.format import Loaded, module_of
from cnnbench.system.measure import latency_ms, peak_memory_mb
from cnnbench.system.processes import reason

BATCHES = (1, 8, 32, 128)
BATCH_SECONDS = 0.25


def logits(loaded: Loaded, images: np.ndarray) -> np.ndarray:
    """Returns (images, classes) float32 logits."""
    if loaded.batch is None:
        return loaded.run(images)
    rows = []
    for start in range(0, len(images), loaded.batch):
        chunk = images[start : start + loaded.batch]
        filled = np.resize(chunk, (loaded.batch, *chunk.shape[1:]))
        rows.append(loaded.run(filled)[: len(chunk)])
    return np.concatenate(rows)


def speed(loaded: Loaded, images: np.ndarray) -> dict[str, Any]:
    """Returns the ms of one image, and the most memory that this took, in MB of 2**20 bytes."""
    one = np.resize(images, (loaded.batch or 1, *images.shape[1:]))
    return {
        "latency_ms": latency_ms(lambda: loaded.run(one)),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def best_batch(loaded: Loaded, images: np.ndarray) -> dict[str, Any]:
    """Returns the batch size of BATCHES that answers most images/s, and how many."""
    rates = {}
    for size in sorted({*BATCHES, loaded.batch or 1}):
        run = loaded.run if size == loaded.batch else loaded.resized(size)
        batch = np.resize(images, (size, *images.shape[1:]))
        if run is None or len(run(batch)) != size:
            continue
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < BATCH_SECONDS:
            run(batch)
            calls += 1
        rates[size] = calls * size / (time.perf_counter() - start)
    size = max(rates, key=lambda size: rates[size])
    return {"batch_size": size, "images_per_s": round(rates[size], 1)}


COMMANDS: dict[str, Callable[[Loaded, np.ndarray], Any]] = {
    "logits": logits,
    "speed": speed,
    "best_batch": best_batch,
}


def main(form: str, path: str, handle: str) -> None:
    """Answers until the other end hangs up."""
    connection = Connection(int(handle))
    try:
        loaded = module_of(form).load(Path(path))
        connection.send(("done", loaded.takes_pixels))
        while True:
            command, images = connection.recv()
            if command == "probabilities":
                answer = np.exp(logits(module_of(form).load(Path(path), command), images))
            else:
                answer = COMMANDS[command](loaded, images)
            connection.send(("done", answer))
    except EOFError:
        return
    except Exception as error:  # told to whoever asked, whatever it is
        connection.send(("failed", reason(error)))


if __name__ == "__main__":
    main(*sys.argv[1:])
