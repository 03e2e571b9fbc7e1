"""How images are prepared for published weights."""

from __future__ import annotations

from dataclasses import dataclass

from cnnbench.registry.imagenet import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared when weights were trained, as far as their publishers say.

    Attributes:
        mean: channel means of values in [0, 1], in the order of `color`.
        std: channel standard deviations, likewise; 1/255 leaves values in 0-255.
        color: "rgb", "bgr" or "grey".
        crop: side of the center crop as a fraction of the scaled short side; None: not published.
        interpolation: "bilinear" or "bicubic"; None: not published.
        crop_mode: "center", or how else timm fits images to the network.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    color: str = "rgb"
    crop: float | None = None
    interpolation: str | None = None
    crop_mode: str = "center"


# The three modes of keras.applications.imagenet_utils.preprocess_input.
KERAS_TORCH = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
KERAS_TF = Preprocessing(HALF, HALF)
KERAS_CAFFE = Preprocessing(
    (103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3, color="bgr"
)
# Only `x / 128 - 1`, inside EfficientNetV2-S and M.
KERAS_128 = Preprocessing((128 / 255,) * 3, (128 / 255,) * 3)
# The evaluation of torchvision's first weights (IMAGENET1K_V1).
TORCHVISION = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop=0.875, interpolation="bilinear")
# Its EfficientNets have crops of their own.
TORCHVISION_BICUBIC = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, interpolation="bicubic")
TORCHVISION_WHOLE = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop=1.0, interpolation="bilinear")
# timm's default; crop and interpolation differ between the weights of a network.
TIMM = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
# Google's networks in timm.
TIMM_HALF = Preprocessing(HALF, HALF)
# efficientnet_lite_pytorch: (x - 127) / 128; it publishes no crop.
LITE_PYTORCH = Preprocessing((127 / 255,) * 3, (128 / 255,) * 3)
