"""Names of MobileNetV3's weights in keras.applications and timm."""

from __future__ import annotations

import re

from cnnbench.models.mobilenet_v3 import VARIANTS, stages
from cnnbench.models.pretrained.names._torch import CONV, NORM, PYTORCH, SYMMETRIC, TORCH_WEIGHTS
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
    "torchvision:mobilenet_v3_large": ("mobilenet_v3_large", SYMMETRIC),
    "torchvision:mobilenet_v3_small": ("mobilenet_v3_small", SYMMETRIC),
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


def torchvision_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter or buffer name for one of our weights."""
    layer, weight = path.split("/")
    weight, kind = TORCH_WEIGHTS[weight], NORM if layer.endswith("_norm") else CONV
    rows, *_ = VARIANTS[model_name]
    match = re.fullmatch(r"stage(\d)_block(\d)_(\w+)", layer)
    if not match:
        if layer in ("head_dense", "logits"):
            return f"classifier.{0 if layer == 'head_dense' else 3}.{weight}"
        return f"features.{0 if layer.startswith('stem') else len(rows) + 1}.{kind}.{weight}"
    stage, block, layer = match.groups()
    index = sum(map(len, stages(model_name)[: int(stage) - 1])) + int(block) - 1
    _, expanded, _, squeezed, *_ = rows[index]
    before = rows[index - 1][2] if index else 16
    parts = ["expand"] if expanded != before else []
    parts += ["depthwise", "se", "project"] if squeezed else ["depthwise", "project"]
    part, _, inner = layer.partition("_")
    kind = {"reduce": "fc1", "expand": "fc2"}[inner] if part == "se" else kind
    return f"features.{index + 1}.block.{parts.index(part)}.{kind}.{weight}"


TORCH_NAMINGS = {"timm": torch_name, "torchvision": torchvision_name}
