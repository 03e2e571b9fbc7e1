"""Names of EfficientNet's weights in keras.applications, timm and efficientnet_pytorch.

Keras's networks first divide the images by 255 and normalize them; ours expect normalized images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cnnbench.models.efficientnet import Stage, scaled
from cnnbench.models.pretrained.names._torch import CONV, NORM, PYTORCH, SYMMETRIC, TORCH_WEIGHTS
from cnnbench.models.pretrained.preprocessing import (
    KERAS_TORCH,
    LITE_PYTORCH,
    TIMM_HALF,
    TORCHVISION_BICUBIC,
)

KERAS_MODELS = {f"efficientnet_b{i}": f"EfficientNetB{i}" for i in range(8)}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_TORCH)
LITE_MODELS = tuple(f"efficientnet_lite{i}" for i in range(5))
TORCH_MODELS = {name: f"timm:tf_{name}" for name in (*KERAS_MODELS, *LITE_MODELS)}
TORCH_VARIANTS = {f"timm:{name}": (name, PYTORCH) for name in TORCH_MODELS}
TORCH_VARIANTS |= {
    f"torchvision:{name}": (name, SYMMETRIC if name[-1] in "567" else PYTORCH)
    for name in KERAS_MODELS
}
TORCH_ALIASES = {
    **{f"efficientnet_pytorch:{name}": TORCH_MODELS[name] for name in KERAS_MODELS},
    **{f"efficientnet_lite_pytorch:{name}": TORCH_MODELS[name] for name in LITE_MODELS},
}
PREPROCESSING = {
    **{f"timm:tf_{name}": TIMM_HALF for name in LITE_MODELS},
    **{f"efficientnet_lite_pytorch:{name}": LITE_PYTORCH for name in LITE_MODELS},
    **{f"torchvision:{name}": TORCHVISION_BICUBIC for name in KERAS_MODELS},
}

KERAS = {
    "stem_conv": "stem_conv",
    "stem_norm": "stem_bn",
    "expand": "expand_conv",
    "expand_norm": "expand_bn",
    "depthwise": "dwconv",
    "depthwise_norm": "bn",
    "se_reduce": "se_reduce",
    "se_expand": "se_expand",
    "project": "project_conv",
    "project_norm": "project_bn",
    "head_conv": "top_conv",
    "head_norm": "top_bn",
    "logits": "predictions",
}
TIMM = {
    "stem_conv": "conv_stem",
    "stem_norm": "bn1",
    "expand": "conv_pw",
    "expand_norm": "bn1",
    "depthwise": "conv_dw",
    "depthwise_norm": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project": "conv_pwl",
    "project_norm": "bn3",
    "head_conv": "conv_head",
    "head_norm": "bn2",
    "logits": "classifier",
}
# Blocks without an expansion have their own class in timm.
TIMM_FIRST = TIMM | {"depthwise_norm": "bn1", "project": "conv_pw", "project_norm": "bn2"}
_EFFICIENTNET_PYTORCH = {
    "stem_conv": "_conv_stem",
    "stem_norm": "_bn0",
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "se_reduce": "_se_reduce",
    "se_expand": "_se_expand",
    "project": "_project_conv",
    "project_norm": "_bn2",
    "head_conv": "_conv_head",
    "head_norm": "_bn1",
    "logits": "_fc",
}


def split(path: str) -> tuple[tuple[int, int] | None, str, str]:
    """Splits a weight path into (stage, block), None outside the stages, layer and weight name."""
    layer, weight = path.split("/")
    if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
        stage, block, part = match.groups()
        return (int(stage), int(block)), part, weight
    return None, layer, weight


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours."""
    return keras_name_by(KERAS, path)


def keras_name_by(names: Mapping[str, str], path: str) -> str:
    """Returns the "layer/weight" of keras.applications, given its layer names."""
    place, layer, weight = split(path)
    if place is None:
        return f"{names[layer]}/{weight}"
    stage, block = place
    return f"block{stage}{chr(ord('a') + block - 1)}_{names[layer]}/{weight}"


def torch_name(model_name: str, path: str) -> str:
    """Returns timm's parameter or buffer name for one of our weights."""
    return timm_name_by({1: TIMM_FIRST}, path)


def timm_name_by(names_of_stages: Mapping[int, Mapping[str, str]], path: str) -> str:
    """Returns timm's parameter or buffer name, given the stages whose layers differ from TIMM."""
    place, layer, weight = split(path)
    if place is None:
        return f"{TIMM[layer]}.{TORCH_WEIGHTS[weight]}"
    stage, block = place
    names = names_of_stages.get(stage, TIMM)
    return f"blocks.{stage - 1}.{block - 1}.{names[layer]}.{TORCH_WEIGHTS[weight]}"


def efficientnet_pytorch_name(model_name: str, path: str) -> str:
    """Returns the name in efficientnet_pytorch, which efficientnet_lite_pytorch shares."""
    place, layer, weight = split(path)
    name = f"{_EFFICIENTNET_PYTORCH[layer]}.{TORCH_WEIGHTS[weight]}"
    if place is None:
        return name
    stage, block = place
    stages, *_ = scaled(model_name)
    index = sum(before.depth for before in stages[: stage - 1]) + block - 1
    return f"_blocks.{index}.{name}"


def torchvision_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter or buffer name for one of our weights."""
    stages, *_ = scaled(model_name)
    return torchvision_name_by(stages, path)


def torchvision_name_by(stages: Sequence[Stage], path: str) -> str:
    """Returns torchvision's parameter or buffer name, given the stages of the network."""
    place, layer, weight = split(path)
    weight = TORCH_WEIGHTS[weight]
    kind = NORM if layer.endswith("_norm") else CONV
    if place is None:
        if layer == "logits":
            return f"classifier.1.{weight}"
        return f"features.{0 if layer.startswith('stem') else len(stages) + 1}.{kind}.{weight}"
    stage, block = place
    about = stages[stage - 1]
    parts = ["expand"] if about.expand_ratio > 1 else []
    parts += ["project"] if about.fused else ["depthwise", "se", "project"]
    part, _, inner = layer.partition("_")
    kind = {"reduce": "fc1", "expand": "fc2"}[inner] if part == "se" else kind
    return f"features.{stage}.{block - 1}.block.{parts.index(part)}.{kind}.{weight}"


TORCH_NAMINGS = {
    "torchvision": torchvision_name,
    "timm": torch_name,
    "efficientnet_pytorch": efficientnet_pytorch_name,
    "efficientnet_lite_pytorch": efficientnet_pytorch_name,
}
