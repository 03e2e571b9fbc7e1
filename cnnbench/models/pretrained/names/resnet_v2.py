"""Names of ResNetV2's weights in keras.applications."""

from __future__ import annotations

import re

from cnnbench.models.pretrained.preprocessing import KERAS_TF

KERAS_MODELS = {
    "resnet50v2": "ResNet50V2",
    "resnet101v2": "ResNet101V2",
    "resnet152v2": "ResNet152V2",
}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_TF)
# Those of timm and others have strides and biases in other places.
TORCH_MODELS: dict[str, str] = {}

_KERAS = {
    "stem_conv": "conv1_conv",
    "head_norm": "post_bn",
    "logits": "predictions",
    "shortcut": "0_conv",
    "norm1": "preact_bn",
    "conv1": "1_conv",
    "norm2": "1_bn",
    "conv2": "2_conv",
    "norm3": "2_bn",
    "conv3": "3_conv",
}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    layer, weight = path.split("/")
    if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
        stage, block, part = match.groups()
        return f"conv{int(stage) + 1}_block{block}_{_KERAS[part]}/{weight}"
    return f"{_KERAS[layer]}/{weight}"


def torch_name(model_name: str, path: str) -> str:
    """Raises LookupError, because TORCH_MODELS is empty."""
    raise LookupError(f"no published PyTorch weights fit {model_name}")
