"""Names of MobileNet's weights in keras.applications and timm."""

from __future__ import annotations

import re

from cnnbench.models.mobilenet_v1 import STAGES
from cnnbench.models.pretrained.names._torch import PYTORCH, TORCH_WEIGHTS
from cnnbench.models.pretrained.names.efficientnet import TIMM, split
from cnnbench.models.pretrained.preprocessing import KERAS_TF, TIMM_HALF

KERAS_MODELS = {"mobilenet_v1": "MobileNet"}
KERAS_PREPROCESSING = {"mobilenet_v1": KERAS_TF}
TORCH_MODELS: dict[str, str] = {}
TORCH_VARIANTS = {"timm:mobilenetv1_100": ("mobilenet_v1", PYTORCH)}
PREPROCESSING = {"timm:mobilenetv1_100": TIMM_HALF}

_KERAS = {"stem_conv": "conv1", "stem_norm": "conv1_bn", "logits": "conv_preds"}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours.

    Its logits are a 1x1 convolution, with a kernel of (1, 1, inputs, outputs).
    """
    layer, weight = path.split("/")
    match = re.fullmatch(r"stage(\d)_block(\d)_(depth|point)wise(_norm)?", layer)
    if not match:
        return f"{_KERAS[layer]}/{weight}"
    stage, block, kind, norm = match.groups()
    index = sum(depth for _, depth, _ in STAGES[: int(stage) - 1]) + int(block)
    return f"conv_{kind[0]}w_{index}{'_bn' if norm else ''}/{weight}"


_TIMM = {
    "depthwise": "conv_dw",
    "depthwise_norm": "bn1",
    "pointwise": "conv_pw",
    "pointwise_norm": "bn2",
}


def torch_name(model_name: str, path: str) -> str:
    """Returns timm's parameter or buffer name for one of our weights."""
    place, layer, weight = split(path)
    if place is None:
        return f"{TIMM[layer]}.{TORCH_WEIGHTS[weight]}"
    stage, block = place
    return f"blocks.{stage - 1}.{block - 1}.{_TIMM[layer]}.{TORCH_WEIGHTS[weight]}"
