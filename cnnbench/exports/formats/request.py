"""The request that a format's `write` gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cnnbench.runs.network import Network

# Images per batch of average_min_max calibration.
AVERAGED_BATCH = 5


@dataclass(frozen=True)
class Request:
    """An artifact to write.

    net: the network, with Keras's own layers only.
    precision: one of PRECISIONS.
    preprocessing: whether the artifact takes uint8 pixels; if not, it takes normalized images.
    calibration: (images, *net.pixel_shape) uint8, for CALIBRATED precisions.
    calibration_method: one of CALIBRATION_METHODS.
    keep_float: names of output tensors of the layers to keep in float32 in a TFLite int8 file.
    """

    net: Network
    precision: str = "float32"
    preprocessing: bool = True
    calibration: np.ndarray | None = None
    calibration_method: str = "min_max"
    keep_float: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the artifact's input."""
        return self.net.pixel_shape if self.preprocessing else self.net.model.input_shape[1:]

    @property
    def input_dtype(self) -> str:
        """The dtype of a float artifact's input."""
        return "uint8" if self.preprocessing else "float32"

    def serve(self, images: Any) -> dict[str, Any]:
        """Computes the task's named outputs from the artifact's input."""
        return self.net(images) if self.preprocessing else self.net.of_normalised(images)

    def calibration_inputs(self) -> np.ndarray:
        """Returns the calibration images as the artifact takes them, float32."""
        assert self.calibration is not None  # for CALIBRATED precisions
        return self._taken(self.calibration)

    def calibration_batches(self) -> list[np.ndarray]:
        """Returns the calibration inputs in batches; int8 ranges are the means over the batches.

        If there are several, the first image of each gets a black and a white pixel in a corner, so
        that every batch covers the whole range of pixels and none is clipped.
        """
        assert self.calibration is not None
        if self.calibration_method == "min_max":
            return [self.calibration_inputs()]
        images = self.calibration.copy()
        batches = np.array_split(images, len(images) // AVERAGED_BATCH)
        for batch in batches:
            batch[0, 0, :2] = [[0], [255]]
        return [self._taken(batch) for batch in batches]

    def _taken(self, pixels: np.ndarray) -> np.ndarray:
        if self.preprocessing:
            return pixels.astype(np.float32)
        return self.net.preprocess(pixels).numpy()
