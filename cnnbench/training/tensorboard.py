"""Writes TensorBoard events without the tensorboard package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnnbench.backend.lazy import tensorflow_errors, tf
from cnnbench.system.files import storage_errors


class Events:
    """Writes the scalars of each epoch to a folder.

    Raises:
        RunError: they cannot be written; also from `write`.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)  # TensorFlow's own would ignore the umask
        with tensorflow_errors(folder):
            self._writer = tf.summary.create_file_writer(str(folder))

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row of metrics.jsonl."""
        scalars = {"lr": row["lr"]}
        for split in ("train", "validation"):
            scalars |= {f"{split}/{key}": value for key, value in row.get(split, {}).items()}
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR"
        )
        with tensorflow_errors(self._folder):
            with self._writer.as_default(step=row["step"]):
                for tag, value in scalars.items():
                    tf.summary.write(tag, tf.constant(value, tf.float32), metadata=metadata)
            self._writer.flush()
