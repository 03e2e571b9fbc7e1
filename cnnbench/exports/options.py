"""Options of an export.

Imports nothing heavy, because the command line imports this module for its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")
# How the range of an int8 tensor is computed from images: from the minimum and maximum over all of
# them, or from the means of the minima and maxima of small batches, which outliers hardly change.
CALIBRATION_METHODS = ("min_max", "average_min_max")
# Default maximum number of test images to verify on.
EXAMPLES = 1000


@dataclass(frozen=True)
class ExportOptions:
    """How artifacts are written and verified.

    preprocessing: whether artifacts take uint8 pixels; if not, they take normalized images.
    verify: whether each artifact is run in its own runtime and compared with the network.
    examples: maximum number of test images to verify on; None: EXAMPLES.
    tolerance: share of the images, in [0, 1], by which an artifact may be worse; None: the default
        of the precision.
    calibration_examples: training images that integer ranges are computed from; None: 200.
    calibration_method: one of CALIBRATION_METHODS.
    explain: whether to write explain.json, the error of each layer of the TFLite int8 file.
    output: folder to write artifacts to; None: the run directory.
    keep_float: number of layers, those with the largest error, to keep in float32 in that file.
    """

    preprocessing: bool = True
    verify: bool = True
    examples: int | None = None
    tolerance: float | None = None
    calibration_examples: int | None = None
    calibration_method: str = "min_max"
    explain: bool = False
    keep_float: int = 0
    output: Path | None = None
