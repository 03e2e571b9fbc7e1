"""Names of DenseNet's weights in keras.applications and torchvision."""

from __future__ import annotations

import re

from cnnbench.models.pretrained.names._torch import TORCH_WEIGHTS
from cnnbench.models.pretrained.preprocessing import KERAS_TORCH

KERAS_MODELS = {
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_TORCH)
TORCH_MODELS = {
    "densenet121": "torchvision:densenet121",
    "densenet161": "torchvision:densenet161",
    "densenet169": "torchvision:densenet169",
    "densenet201": "torchvision:densenet201",
}
TORCH_ALIASES = {f"timm:{name}": reference for name, reference in TORCH_MODELS.items()}

_KERAS = {
    "stem_conv": "conv1_conv",
    "stem_norm": "conv1_bn",
    "bottleneck_norm": "0_bn",
    "bottleneck_conv": "1_conv",
    "norm": "1_bn",
    "conv": "2_conv",
    "head_norm": "bn",
    "logits": "predictions",
}
_TORCH = {
    "stem_conv": "features.conv0",
    "stem_norm": "features.norm0",
    "bottleneck_norm": "norm1",
    "bottleneck_conv": "conv1",
    "norm": "norm2",
    "conv": "conv2",
    "head_norm": "features.norm5",
    "logits": "classifier",
}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    layer, weight = path.split("/")
    if match := re.fullmatch(r"stage(\d)_transition_(\w+)", layer):
        stage, part = match.groups()
        return f"pool{stage}_{'bn' if part == 'norm' else part}/{weight}"
    if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
        stage, block, part = match.groups()
        return f"conv{int(stage) + 1}_block{block}_{_KERAS[part]}/{weight}"
    return f"{_KERAS[layer]}/{weight}"


def torch_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter or buffer name for one of our weights.

    These are the names in a model; torchvision's early files have "norm.1" for "norm1", and so on.
    """
    layer, weight = path.split("/")
    weight = TORCH_WEIGHTS[weight]
    if match := re.fullmatch(r"stage(\d)_transition_(\w+)", layer):
        stage, part = match.groups()
        return f"features.transition{int(stage) - 1}.{part}.{weight}"
    if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
        stage, block, part = match.groups()
        return f"features.denseblock{stage}.denselayer{block}.{_TORCH[part]}.{weight}"
    return f"{_TORCH[layer]}.{weight}"
