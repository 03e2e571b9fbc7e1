"""An artifact opened in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.system.processes import Child, WorkerError

BATCH = 32


class Artifact(Child):
    """An artifact opened in its runtime, in a process with nothing else.

    Measurements are therefore those of the runtime alone, and an artifact that crashes its runtime
    ends only that process. The process runs a program of its own: a multiprocessing worker would
    first rerun the user's script around `cnnbench.export`.

    takes_pixels: whether it takes uint8 pixels; if not, it takes float32 normalized images.

    Raises:
        WorkerError: the runtime cannot open it.
    """

    takes_pixels: bool
    noun = "runtime"

    def __init__(self, form: str, path: Path):
        super().__init__()
        package = Path(__file__).parents[2]
        searched = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        handle = self.theirs.fileno()
        command = ["-P", "-m", "cnnbench.exports.serve", form, str(path), str(handle)]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, *command],
            pass_fds=[handle],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # float32 is float32 on GPUs too; see session.exact_float32.
            env=os.environ
            | {"PYTHONPATH": searched, "TMPDIR": self.temporary.name, "NVIDIA_TF32_OVERRIDE": "0"},
        )
        self.theirs.close()
        try:
            self.takes_pixels = self.receive("open")
        except BaseException:  # also Ctrl-C: end the process, then re-raise
            self.close()
            raise

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs for all images by name, float32.

        Args:
            images: (images, height, width, channels), as the artifact takes them.

        Raises:
            WorkerError: the runtime failed; every later call fails too.
        """
        starts = range(0, len(images), BATCH)
        rows = [self.ask("outputs", images[i : i + BATCH]) for i in starts]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def speed(self, images: np.ndarray) -> dict[str, Any]:
        """Returns "latency_ms" of one image, and "peak_memory_mb" of the process so far."""
        return self.ask("speed", images[:1])

    def best_batch(self, images: np.ndarray) -> dict[str, Any] | None:
        """Returns the "batch_size" with the highest throughput, and its "images_per_s".

        Returns None if the runtime fails on larger batches; its process has then ended.
        """
        try:
            return self.ask("best_batch", images[:1])
        except WorkerError:  # speed is not part of verification
            return None

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def how_it_ended(self) -> str:
        """Returns how the process ended, with the last line that it printed."""
        end = super().how_it_ended()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last_line = [line for line in lines if line.strip()][-1:]
        return ": ".join([end, *last_line])
