"""An artifact that is open in a process of its own."""

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
    """An artifact in its run-time, with nothing else in the process.

    What is measured there is the run-time's, and a file that brings its run-time down brings down
    no more. It is a program of its own and no multiprocessing worker, which would first run again
    the script that the user wrote around `cnnbench.export`.

    takes_pixels: whether it takes uint8 pixels, or float32 normalised images.

    Raises:
        WorkerError: the run-time cannot open it.
    """

    takes_pixels: bool
    noun = "run-time"

    def __init__(self, form: str, path: Path):
        super().__init__()
        package = Path(__file__).parents[2]
        searched = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        handle = self.theirs.fileno()
        command = ["-P", "-m", "cnnbench.exports.serve", form, str(path), str(handle)]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, *command],
            pass_fds=[handle],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=os.environ | {"PYTHONPATH": searched, "TMPDIR": self.temporary.name},
        )
        self.theirs.close()
        try:
            self.takes_pixels = self.receive("open")
        except BaseException:  # Ctrl-C too: ended, and raised again
            self.close()
            raise

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs for all images by their names, float32.

        Args:
            images: (images, height, width, channels), as the file takes them.

        Raises:
            WorkerError: the run-time fails, and so does all that is asked after that.
        """
        starts = range(0, len(images), BATCH)
        rows = [self.ask("outputs", images[i : i + BATCH]) for i in starts]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def speed(self, images: np.ndarray) -> dict[str, Any]:
        """Returns "latency_ms" of one image, and "peak_memory_mb" of the process until then."""
        return self.ask("speed", images[:1])

    def best_batch(self, images: np.ndarray) -> dict[str, Any] | None:
        """Returns the "batch_size" that answers most images, and its "images_per_s".

        None where larger batches are too much for the run-time, which has ended then.
        """
        try:
            return self.ask("best_batch", images[:1])
        except WorkerError:  # how fast it is does not tell whether it is right
            return None

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def how_it_ended(self) -> str:
        """Returns how the process ended, with the last line that it printed."""
        end = super().how_it_ended()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").split("\n")
        words = [line for line in said if line.strip()][-1:]
        return ": ".join([end, *words])
