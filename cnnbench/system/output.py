"""Output whose reader may have gone, as of `cnnbench train … | head`."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TextIO


def discard(stream: TextIO) -> None:
    """Sends what is still written to a stream nowhere, once its reader has gone."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file, as in a test
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
