"""Names of ResNet's weights in keras.applications, torchvision and timm."""

from __future__ import annotations

import re
from typing import Any

from cnnbench.models.pretrained.names._torch import TORCH_WEIGHTS
from cnnbench.models.pretrained.preprocessing import KERAS_CAFFE

# Their epsilon is 1.001e-5, ours 1e-5 as in torchvision, which changes the logits by 1e-5 of the
# largest logit.
KERAS_MODELS = {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}
# The options with which our models match those of keras.applications.
KERAS_OPTIONS = {name: {"stride": "first"} for name in KERAS_MODELS}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_CAFFE)
TORCH_MODELS = {
    "resnet18": "torchvision:resnet18",
    "resnet34": "torchvision:resnet34",
    "resnet50": "torchvision:resnet50",
    "resnet101": "torchvision:resnet101",
    "resnet152": "torchvision:resnet152",
}
# timm models that match ours with options.
TORCH_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "timm:resnet18d": ("resnet18", {"stem": "deep"}),
    "timm:resnet34d": ("resnet34", {"stem": "deep"}),
    "timm:resnet50d": ("resnet50", {"stem": "deep"}),
    "timm:resnet101d": ("resnet101", {"stem": "deep"}),
    "timm:resnet152d": ("resnet152", {"stem": "deep"}),
    "timm:seresnet50": ("resnet50", {"se_ratio": 1 / 16}),
    "timm:seresnet101": ("resnet101", {"se_ratio": 1 / 16}),
    "timm:seresnet152": ("resnet152", {"se_ratio": 1 / 16}),
}
TORCH_ALIASES = {f"timm:{name}": reference for name, reference in TORCH_MODELS.items()}
# timm's networks that blur or average before they skip pixels, which has no weights.
LOOK_ALIKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "timm:resnetblur18": ("resnet18", {}, "anti-aliasing"),
    "timm:resnetblur50": ("resnet50", {}, "anti-aliasing"),
    "timm:resnetblur50d": ("resnet50", {"stem": "deep"}, "anti-aliasing"),
    "timm:resnetblur101d": ("resnet101", {"stem": "deep"}, "anti-aliasing"),
    "timm:resnetaa34d": ("resnet34", {"stem": "deep"}, "anti-aliasing"),
    "timm:resnetaa50": ("resnet50", {}, "anti-aliasing"),
    "timm:resnetaa50d": ("resnet50", {"stem": "deep"}, "anti-aliasing"),
    "timm:resnetaa101d": ("resnet101", {"stem": "deep"}, "anti-aliasing"),
    "timm:seresnetaa50d": ("resnet50", {"stem": "deep", "se_ratio": 1 / 16}, "anti-aliasing"),
}

_KERAS = {"stem_conv": "conv1_conv", "stem_norm": "conv1_bn", "logits": "predictions"}
_KERAS_PARTS = {"shortcut": "0_conv", "shortcut_norm": "0_bn"}
_KERAS_PARTS |= {f"conv{i}": f"{i}_conv" for i in (1, 2, 3)}
_KERAS_PARTS |= {f"norm{i}": f"{i}_bn" for i in (1, 2, 3)}
_TORCH = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    # timm: the last batch norm of a deep stem has the name of the plain stem's only one.
    "stem_conv1": "conv1.0",
    "stem_norm1": "conv1.1",
    "stem_conv2": "conv1.3",
    "stem_norm2": "conv1.4",
    "stem_conv3": "conv1.6",
    "stem_norm3": "bn1",
    "logits": "fc",
}
_TORCH_PARTS = {
    "shortcut": "downsample.0",
    "shortcut_norm": "downsample.1",
    "pool_shortcut": "downsample.1",
    "pool_shortcut_norm": "downsample.2",
    "se_reduce": "se.fc1",
    "se_expand": "se.fc2",
}
_TORCH_PARTS |= {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}
_TORCH_PARTS |= {f"norm{i}": f"bn{i}" for i in (1, 2, 3)}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    layer, weight = path.split("/")
    if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
        stage, block, part = match.groups()
        return f"conv{int(stage) + 1}_block{block}_{_KERAS_PARTS[part]}/{weight}"
    return f"{_KERAS[layer]}/{weight}"


def keras_folds(model_name: str, path: str) -> str | None:
    """Returns the bias of keras.applications to be subtracted from one of our weights, or None.

    Convolutions have biases there, and none here. The batch norm after a convolution can absorb
    its bias: in inference, (x + bias) - mean = x - (mean - bias), so we subtract the bias from the
    moving mean; in training, where the mean is that of the batch, the bias cancels.
    """
    if not path.endswith("/moving_mean"):
        return None
    return keras_name(model_name, path).replace("_bn/moving_mean", "_conv/bias")


def torch_name(model_name: str, path: str) -> str:
    """Returns torchvision's or timm's parameter or buffer name for one of our weights."""
    layer, weight = path.split("/")
    weight = TORCH_WEIGHTS[weight]
    if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
        stage, block, part = match.groups()
        return f"layer{stage}.{int(block) - 1}.{_TORCH_PARTS[part]}.{weight}"
    return f"{_TORCH[layer]}.{weight}"
