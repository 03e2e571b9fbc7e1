"""Peak memory and latency of the current process."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

LATENCY_CALLS = 50
# Batch sizes at which inference throughput is measured.
INFERENCE_BATCHES = (1, 8, 32, 128)


class Latency(TypedDict):
    """Percentiles of the time of a call, in ms.

    Attributes:
        p50: the median.
        p95: the 95th percentile.
    """

    p50: float
    p95: float


def peak_memory_mb() -> float:
    """Returns the peak resident memory of this process, in MB of 2**20 bytes."""
    # VmHWM first: the ru_maxrss of a new process starts at its parent's peak.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**2


def latency_ms(call: Callable[[], Any], calls: int = LATENCY_CALLS) -> Latency:
    """Returns latency percentiles, in ms, over `calls` calls after two warm-up calls."""
    seconds = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return latency_percentiles_ms(seconds[2:])


def latency_percentiles_ms(seconds: Sequence[float]) -> Latency:
    """Returns latency percentiles, in ms, of call times in seconds."""
    p50, p95 = 1000 * np.percentile(seconds, (50, 95))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}
