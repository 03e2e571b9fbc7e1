"""Names of MobileNet's weights in keras.applications."""

from __future__ import annotations

import re

from cnnbench.models.mobilenet_v1 import STAGES
from cnnbench.models.pretrained.preprocessing import KERAS_TF

KERAS_MODELS = {"mobilenet_v1": "MobileNet"}
KERAS_PREPROCESSING = {"mobilenet_v1": KERAS_TF}
TORCH_MODELS: dict[str, str] = {}

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


def torch_name(model_name: str, path: str) -> str:
    """Raises LookupError, because no published PyTorch network matches ours."""
    raise LookupError(f"no PyTorch weights fit {model_name}")
