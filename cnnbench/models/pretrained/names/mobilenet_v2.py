"""Names of MobileNetV2's weights in keras.applications, torchvision and timm."""

from __future__ import annotations

import re

from cnnbench.models.mobilenet_v2 import STAGES
from cnnbench.models.pretrained.names._torch import CONV, NORM, PYTORCH, TORCH_WEIGHTS
from cnnbench.models.pretrained.names.efficientnet import TIMM_FIRST, split, timm_name_by
from cnnbench.models.pretrained.preprocessing import KERAS_TF

KERAS_MODELS = {"mobilenet_v2": "MobileNetV2"}
KERAS_PREPROCESSING = {"mobilenet_v2": KERAS_TF}
TORCH_MODELS: dict[str, str] = {}
TORCH_VARIANTS = {
    "torchvision:mobilenet_v2": ("mobilenet_v2", PYTORCH),
    "timm:mobilenetv2_050": ("mobilenet_v2_050", PYTORCH),
    "timm:mobilenetv2_100": ("mobilenet_v2", PYTORCH),
    "timm:mobilenetv2_140": ("mobilenet_v2_140", PYTORCH),
}

_KERAS = {
    "stem_conv": "Conv1",
    "stem_norm": "bn_Conv1",
    "head_conv": "Conv_1",
    "head_norm": "Conv_1_bn",
    "logits": "predictions",
}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    layer, weight = path.split("/")
    match = re.fullmatch(r"stage(\d)_block(\d)_(expand|depthwise|project)(_norm)?", layer)
    if not match:
        return f"{_KERAS[layer]}/{weight}"
    stage, block, part, norm = match.groups()
    index = sum(depth for _, _, depth, _ in STAGES[: int(stage) - 1]) + int(block) - 1
    prefix = f"block_{index}" if index else "expanded_conv"
    return f"{prefix}_{part}{'_BN' if norm else ''}/{weight}"


def torch_name(model_name: str, path: str) -> str:
    """Returns timm's parameter or buffer name for one of our weights."""
    return timm_name_by({1: TIMM_FIRST}, path)


def torchvision_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter or buffer name for one of our weights."""
    place, layer, weight = split(path)
    weight, kind = TORCH_WEIGHTS[weight], NORM if layer.endswith("_norm") else CONV
    if layer == "logits":
        return f"classifier.1.{weight}"
    depths = [depth for _, _, depth, _ in STAGES]
    if place is None:
        return f"features.{0 if layer.startswith('stem') else sum(depths) + 1}.{kind}.{weight}"
    stage, block = place
    index = sum(depths[: stage - 1]) + block
    parts = ["depthwise", "project"] if stage == 1 else ["expand", "depthwise", "project"]
    number = parts.index(layer.partition("_")[0])
    # The last convolution and its batch norm are not in a container of their own.
    inner = f"{number}.{kind}" if number < len(parts) - 1 else str(number + int(kind))
    return f"features.{index}.conv.{inner}.{weight}"


TORCH_NAMINGS = {"timm": torch_name, "torchvision": torchvision_name}
