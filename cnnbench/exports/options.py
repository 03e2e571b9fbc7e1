"""What a user chooses of an export; light, because the command line imports it for its help."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")
# How the range of an int8 tensor is computed from images: the least and the greatest value, or the
# means of the least and of the greatest values of small batches, which an outlier hardly moves.
CALIBRATION_METHODS = ("min_max", "average_min_max")
# Test images that files are verified on, at the most.
EXAMPLES = 1000


@dataclass(frozen=True)
class ExportOptions:
    """How files are written and verified.

    preprocessing: whether they take uint8 pixels, or normalised images.
    verify: whether each is run by its own run-time and compared with the network.
    examples: test images to verify on, at the most; None: EXAMPLES.
    tolerance: share of the images, 0-1, by which a file may be worse; None: by the precision.
    calibration_examples: training images that integer ranges are computed from; None: 200.
    calibration_method: one of CALIBRATION_METHODS.
    explain: whether explain.json tells what each layer of the TFLite int8 file loses.
    keep_float: how many of the layers that lose most stay in float32 there.
    """

    preprocessing: bool = True
    verify: bool = True
    examples: int | None = None
    tolerance: float | None = None
    calibration_examples: int | None = None
    calibration_method: str = "min_max"
    explain: bool = False
    keep_float: int = 0
