"""Names of NASNet's weights in keras.applications."""

from __future__ import annotations

import re

from cnnbench.models.nasnet import VARIANTS
from cnnbench.models.pretrained.names._torch import TORCH_WEIGHTS
from cnnbench.models.pretrained.preprocessing import HALF, KERAS_TF, Preprocessing

KERAS_MODELS = {"nasnet_mobile": "NASNetMobile", "nasnet_large": "NASNetLarge"}
KERAS_PREPROCESSING = dict.fromkeys(KERAS_MODELS, KERAS_TF)
TORCH_MODELS: dict[str, str] = {}
TORCH_VARIANTS = {"timm:nasnetalarge": ("nasnet_large", {"max_pool_padding": "excluded"})}
PREPROCESSING = {
    "timm:nasnetalarge": Preprocessing(HALF, HALF, crop=0.911, interpolation="bicubic")
}

_KERAS = {
    "stem_conv": "stem_conv1",
    "stem_norm": "stem_bn1",
    "previous_conv": "adjust_conv_projection",
    "previous_conv1": "adjust_conv_1",
    "previous_conv2": "adjust_conv_2",
    "previous_norm": "adjust_bn",
    "logits": "predictions",
}


def keras_name(model_name: str, path: str) -> str:
    """Returns the "layer/weight" of keras.applications for one of ours.

    Its separable convolutions are single layers with a depthwise and a pointwise kernel.
    """
    layer, weight = path.split("/")
    match = re.fullmatch(r"(?:stem_cell|stage(\d)_block)(\d+)_(\w+)", layer)
    if not match:
        return f"{_KERAS[layer]}/{weight}"
    stage, block, part = match.groups()
    before = VARIANTS[model_name].cells * (int(stage or 1) - 1)
    if stage is None:
        kind, cell = "reduction", f"stem_{block}"
    elif block == "1" and before:
        kind, cell = "reduction", f"reduce_{before}"
    else:
        kind, cell = "normal", f"{before + int(block) - 1}"
    if part in _KERAS:
        return f"{_KERAS[part]}_{cell}/{weight}"
    match = re.fullmatch(r"(left\d|right\d)_(depthwise|pointwise|norm)(\d)", part)
    if not match:
        return f"{kind}_{'bn' if part == 'norm' else 'conv'}_1_{cell}/{weight}"
    place, part, i = match.groups()
    # keras.applications uses this name, although it calls the max pooling right5.
    place = "left4" if kind == "reduction" and place == "left5" else place
    if part == "norm":
        return f"separable_conv_{i}_bn_{kind}_{place}_{cell}/{weight}"
    return f"separable_conv_{i}_{kind}_{place}_{cell}/{part}_{weight}"


_TIMM = {
    "stem_conv": "conv0.conv",
    "stem_norm": "conv0.bn",
    "logits": "last_linear",
    "conv": "conv_1x1.conv",
    "norm": "conv_1x1.bn",
    "previous_conv": "conv_prev_1x1.conv",
    "previous_norm": "conv_prev_1x1.bn",
    "previous_conv1": "path_1.conv",
    "previous_conv2": "path_2.conv",
}


def torch_name(model_name: str, path: str) -> str:
    """Returns timm's parameter or buffer name for one of our weights of nasnet_large.

    Raises:
        LookupError: timm has no such layer, as in the other variants.
    """
    if model_name != "nasnet_large":
        raise LookupError(f"no PyTorch weights fit {model_name}")
    layer, weight = path.split("/")
    weight = TORCH_WEIGHTS[weight]
    match = re.fullmatch(r"(stem_cell|stage\d_block)(\d+)_(\w+)", layer)
    if not match:
        return f"{_TIMM[layer]}.{weight}"
    place, block, part = match.groups()
    cells, halves = VARIANTS[model_name].cells, False
    if place == "stem_cell":
        cell = f"cell_stem_{int(block) - 1}"
        halves = block == "2"
    else:
        stage = int(place[5])
        before = cells * (stage - 1)
        # Stages 2 and 3 begin with a reduction, which is not counted.
        number = before + int(block) - (1 if stage == 1 else 2)
        cell = f"cell_{number}"
        if stage > 1 and block == "1":
            cell = f"reduction_cell_{stage - 2}"
        halves = number == before and not cell.startswith("reduction")
    if halves and part == "previous_norm":
        return f"{cell}.final_path_bn.{weight}"
    if part in _TIMM:
        return f"{cell}.{_TIMM[part]}.{weight}"
    operation = re.fullmatch(r"(left|right)(\d)_(depthwise|pointwise|norm)(\d)", part)
    if operation is None:
        raise LookupError(f"timm's nasnetalarge has no {layer}")
    side, sum_, kind, i = operation.groups()
    inner = f"bn_sep_{i}" if kind == "norm" else f"separable_{i}.{kind}_conv2d"
    return f"{cell}.comb_iter_{int(sum_) - 1}_{side}.{inner}.{weight}"
