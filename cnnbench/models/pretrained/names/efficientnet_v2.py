"""Names of EfficientNetV2's weights in keras.applications and timm.

Keras's networks first normalize the images, unless built with include_preprocessing=False; ours
expect normalized images.
"""

from __future__ import annotations

from cnnbench.models.efficientnet_v2 import VARIANTS
from cnnbench.models.pretrained.names._torch import PYTORCH, SYMMETRIC
from cnnbench.models.pretrained.names.efficientnet import (
    KERAS,
    keras_name_by,
    timm_name_by,
    torchvision_name_by,
)
from cnnbench.models.pretrained.preprocessing import (
    KERAS_128,
    KERAS_TORCH,
    TIMM_HALF,
    TORCHVISION_WHOLE,
)

_VARIANTS = ("b0", "b1", "b2", "b3", "s", "m")
KERAS_MODELS = {f"efficientnet_v2_{v}": f"EfficientNetV2{v.upper()}" for v in _VARIANTS}
# Keras's networks begin with a layer that does this: B0 to B3 with ImageNet's mean and standard
# deviation, S and M with `x / 128 - 1`.
KERAS_PREPROCESSING = {
    model: KERAS_TORCH if model.rpartition("_")[2].startswith("b") else KERAS_128
    for model in KERAS_MODELS
}
TORCH_MODELS = {f"efficientnet_v2_{v}": f"timm:tf_efficientnetv2_{v}" for v in _VARIANTS}
TORCH_VARIANTS = {f"timm:efficientnetv2_{v}": (f"efficientnet_v2_{v}", PYTORCH) for v in ("s", "m")}
TORCH_VARIANTS |= {
    f"torchvision:efficientnet_v2_{v}": (f"efficientnet_v2_{v}", SYMMETRIC) for v in ("s", "m")
}
PREPROCESSING = {f"timm:tf_efficientnetv2_{v}": TIMM_HALF for v in ("s", "m")}
PREPROCESSING |= {f"torchvision:efficientnet_v2_{v}": TORCHVISION_WHOLE for v in ("s", "m")}

_KERAS = KERAS | {"depthwise": "dwconv2"}
_TIMM_FIRST = {"project": "conv", "project_norm": "bn1"}
_TIMM_FUSED = {
    "expand": "conv_exp",
    "expand_norm": "bn1",
    "project": "conv_pwl",
    "project_norm": "bn2",
}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    return keras_name_by(_KERAS, path)


def torch_name(model_name: str, path: str) -> str:
    """Returns timm's parameter or buffer name for one of our weights."""
    return timm_name_by({1: _TIMM_FIRST, 2: _TIMM_FUSED, 3: _TIMM_FUSED}, path)


def torchvision_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter or buffer name for one of our weights."""
    return torchvision_name_by(VARIANTS[model_name][0], path)


TORCH_NAMINGS = {"timm": torch_name, "torchvision": torchvision_name}
