"""An artifact that is open in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cnnbench.system.processes import WorkerError

TIMEOUT_S = 600.0
# A run-time that crashes may write its memory to a file first.
ENDING_S = 30.0
BATCH = 32


class Artifact:
    """An artifact in its run-time, with nothing else in the process.

    What is measured there is the run-time's, and a file that brings its run-time down brings down
    no more. It is a program of its own and no multiprocessing worker, which would first run again
    the script that the user wrote around `cnnbench.export`.

    takes_pixels: whether it takes uint8 pixels, or float32 normalised images.

    Raises:
        WorkerError: the run-time cannot open it.
    """

    takes_pixels: bool

    def __init__(self, form: str, path: Path):
        package = Path(__file__).parents[2]
        searched = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._connection, theirs = multiprocessing.Pipe()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        command = ["-P", "-m", "cnnbench.exports.serve", form, str(path), str(theirs.fileno())]
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, *command],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=os.environ | {"PYTHONPATH": searched},
        )
        theirs.close()
        try:
            self.takes_pixels = self._answer("open")
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
        rows = [self._ask("outputs", images[i : i + BATCH]) for i in starts]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def speed(self, images: np.ndarray) -> dict[str, Any]:
        """Returns "latency_ms" of one image, and "peak_memory_mb" of the process until then."""
        return self._ask("speed", images[:1])

    def best_batch(self, images: np.ndarray) -> dict[str, Any] | None:
        """Returns the "batch_size" that answers most images, and its "images_per_s".

        None where larger batches are too much for the run-time, which has ended then.
        """
        try:
            return self._ask("best_batch", images[:1])
        except WorkerError:  # how fast it is does not tell whether it is right
            return None

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._said.close()

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: str, images: np.ndarray) -> Any:
        try:
            self._connection.send((command, images))
        except OSError:
            raise WorkerError(self._end()) from None
        return self._answer(command)

    def _answer(self, command: str) -> Any:
        if not self._connection.poll(TIMEOUT_S):
            raise WorkerError(f"no answer to {command!r} in {TIMEOUT_S:.0f} s")
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._end()) from None
        if kind == "failed":
            raise WorkerError(value[:300])
        return value

    def _end(self) -> str:
        try:
            code = self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            return "the run-time does not answer, and does not end"
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").split("\n")
        words = [line for line in said if line.strip()][-1:]
        end = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ": ".join([f"the run-time ended {end}", *words])
