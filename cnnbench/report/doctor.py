"""Facts about this machine, for a check before training and for bug reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cnnbench.backend.lazy import tf
from cnnbench.system.environment import machine, versions


def examine() -> dict[str, Any]:
    """Returns versions, the machine, TensorFlow's devices, and the data sets that are prepared."""
    root = Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")
    prepared = {path.parent.parent.name for path in root.glob("*/*/dataset_info.json")}
    return {
        **versions(),
        **machine(),
        "devices": ", ".join(device.name for device in tf.config.list_logical_devices()),
        "data sets in": str(root),
        "prepared there": ", ".join(sorted(prepared)) or "none",
    }
