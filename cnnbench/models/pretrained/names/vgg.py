"""Names of VGG's weights in keras.applications and torchvision."""

from __future__ import annotations

import re

from cnnbench.models.pretrained.names._torch import TORCH_WEIGHTS
from cnnbench.models.pretrained.preprocessing import KERAS_CAFFE
from cnnbench.models.vgg import DEPTHS

KERAS_MODELS = {"vgg16": "VGG16", "vgg19": "VGG19"}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_CAFFE)
TORCH_MODELS = {name: f"torchvision:{name}" for d in DEPTHS for name in (d, f"{d}_bn")}

_KERAS = {"head_dense1": "fc1", "head_dense2": "fc2", "logits": "predictions"}
_TORCH = {"head_dense1": "classifier.0", "head_dense2": "classifier.3", "logits": "classifier.6"}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    layer, weight = path.split("/")
    return f"{_KERAS.get(layer) or layer.replace('stage', 'block')}/{weight}"


def torch_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter or buffer name for one of our weights."""
    layer, weight = path.split("/")
    weight = TORCH_WEIGHTS[weight]
    match = re.fullmatch(r"stage(\d)_(conv|norm)(\d)", layer)
    if not match:
        return f"{_TORCH[layer]}.{weight}"
    stage, part, i = match.groups()
    # torchvision numbers all modules in one sequence: convolution, batch norm, ReLU, …, pooling, ….
    depth, _, batch_norm = model_name.partition("_")
    before = DEPTHS[depth][: int(stage) - 1]
    index = (3 if batch_norm else 2) * (sum(before) + int(i) - 1) + len(before)
    return f"features.{index + (part == 'norm')}.{weight}"


def torch_layout(model_name: str, path: str) -> tuple[int, int, int] | None:
    """Returns the (channels, height, width) that torchvision flattens for a dense kernel, or None.

    We flatten (height, width, channels), so the rows of the kernel must be permuted.
    """
    return (512, 7, 7) if path == "head_dense1/kernel" else None
