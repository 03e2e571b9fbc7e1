"""What a user chooses of an export; imports nothing heavy, for the command line names it too."""

from __future__ import annotations

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")
# How int8 ranges are computed from images: the least and greatest value, or the mean of the least
# and of the greatest value of batches, which an outlier hardly moves.
CALIBRATION_METHODS = ("min_max", "average_min_max")
