"""Names of NASNet's weights in keras.applications."""

from __future__ import annotations

import re

from cnnbench.models.nasnet import VARIANTS

KERAS_MODELS = {"nasnet_mobile": "NASNetMobile", "nasnet_large": "NASNetLarge"}
TORCH_MODELS: dict[str, str] = {}

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


def torch_name(model_name: str, path: str) -> str:
    """Raises LookupError, because no published PyTorch network matches ours."""
    raise LookupError(f"no PyTorch weights fit {model_name}")
