"""Names of MobileNetV2's weights in keras.applications."""

from __future__ import annotations

import re

from cnnbench.models.mobilenet_v2 import STAGES
from cnnbench.models.pretrained.preprocessing import KERAS_TF

KERAS_MODELS = {"mobilenet_v2": "MobileNetV2"}
KERAS_PREPROCESSING = {"mobilenet_v2": KERAS_TF}
TORCH_MODELS: dict[str, str] = {}

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
    """Raises LookupError, because no published PyTorch network matches ours."""
    raise LookupError(f"no PyTorch weights fit {model_name}")
