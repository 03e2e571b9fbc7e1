"""Names of MobileNetV3's weights in keras.applications and timm."""

from __future__ import annotations

import re

from cnnbench.models.mobilenet_v3 import stages
from cnnbench.models.pretrained.names._torch import PYTORCH, TORCH_WEIGHTS
from cnnbench.models.pretrained.names.efficientnet import TIMM, TIMM_FIRST
from cnnbench.models.pretrained.preprocessing import KERAS_TF, TIMM_HALF

KERAS_MODELS = {
    "mobilenet_v3_large": "MobileNetV3Large",
    "mobilenet_v3_small": "MobileNetV3Small",
}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_TF)
TORCH_MODELS = {
    "mobilenet_v3_large": "timm:tf_mobilenetv3_large_100",
    "mobilenet_v3_small": "timm:tf_mobilenetv3_small_100",
}
TORCH_VARIANTS = {
    "timm:mobilenetv3_large_100": ("mobilenet_v3_large", PYTORCH),
    "timm:mobilenetv3_small_100": ("mobilenet_v3_small", PYTORCH),
}
PREPROCESSING = dict.fromkeys(TORCH_MODELS.values(), TIMM_HALF)

_KERAS = {
    "stem_conv": "conv",
    "stem_norm": "conv_bn",
    "se_reduce": "squeeze_excite_conv",
    "se_expand": "squeeze_excite_conv_1",
    "head_conv": "conv_1",
    "head_norm": "conv_1_bn",
    "head_dense": "conv_2",
    "logits": "logits",
}
_TORCH = TIMM | {"head_dense": "conv_head"}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours.

    Its dense layers are both 1x1 convolutions, with kernels of (1, 1, inputs, outputs).
    """
    layer, weight = path.split("/")
    match = re.fullmatch(r"stage(\d)_block(\d)_(\w+)", layer)
    if not match:
        return f"{_KERAS[layer]}/{weight}"
    stage, block, part = match.groups()
    index = sum(map(len, stages(model_name)[: int(stage) - 1])) + int(block) - 1
    part = _KERAS.get(part) or part.replace("norm", "bn")
    return f"expanded_conv_{f'{index}_' if index else ''}{part}/{weight}"


def torch_name(model_name: str, path: str) -> str:
    """Returns timm's parameter or buffer name for one of our weights.

    Its `head_dense` is a 1x1 convolution, with a kernel of (outputs, inputs, 1, 1).
    """
    layer, weight = path.split("/")
    weight = TORCH_WEIGHTS[weight]
    if layer in ("head_conv", "head_norm"):
        part = "conv" if layer == "head_conv" else "bn1"
        return f"blocks.{len(stages(model_name))}.0.{part}.{weight}"
    match = re.fullmatch(r"stage(\d)_block(\d)_(\w+)", layer)
    if not match:
        return f"{_TORCH[layer]}.{weight}"
    stage, block, part = match.groups()
    names = TIMM_FIRST if stage == "1" else _TORCH
    return f"blocks.{int(stage) - 1}.{int(block) - 1}.{names[part]}.{weight}"
