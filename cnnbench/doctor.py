"""What this machine has, for a look before training and for reports of problems."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cnnbench.lazy import tf
from cnnbench.run import machine, versions


def examine() -> dict[str, Any]:
    """Returns versions, the machine, the devices TensorFlow sees and where data sets are looked for."""
    devices = [device.name for device in tf.config.list_logical_devices()]
    data_dir = os.environ.get("TFDS_DATA_DIR")
    prepared = (
        sorted(path.parent.name for path in Path(data_dir).glob("*/*/") if path.is_dir())
        if data_dir
        else []
    )
    return {
        **versions(),
        **machine(),
        "devices": ", ".join(devices),
        "TFDS_DATA_DIR": data_dir or "not set: data sets are looked for in ~/tensorflow_datasets",
        "prepared data sets": ", ".join(dict.fromkeys(prepared)) or "none there",
    }
