"""A pipe is read once, and not waited for without end."""

import os
import threading
from pathlib import Path

import pytest

from cnnbench.errors import DataError
from cnnbench.system import pipes


def test_a_pipe_is_read_to_its_end(tmp_path):
    data = bytes(range(256)) * 1000  # more than a pipe holds
    end, start = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(start, data), os.close(start)))
    writer.start()
    try:
        assert pipes.content(Path(f"/dev/fd/{end}")) == data
    finally:
        writer.join()
        os.close(end)


def test_a_pipe_to_which_nobody_writes_ends(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"x\.jpg: is a pipe, from which nothing came for 0 s"):
        pipes.content(tmp_path / "x.jpg", seconds=0.05)


def test_files_are_left_to_others_and_devices_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert pipes.content(tmp_path / "file") is pipes.content(tmp_path / "none") is None
    with pytest.raises(DataError, match="/dev/zero: is a device or a socket; a file or a pipe"):
        pipes.content(Path("/dev/zero"))
