"""Names of AlexNet's weights in torchvision."""

from __future__ import annotations

from cnnbench.models.pretrained.names._torch import TORCH_WEIGHTS

KERAS_MODELS: dict[str, str] = {}
TORCH_MODELS = {"alexnet": "torchvision:alexnet"}

_TORCH = {
    "stage1_conv": "features.0",
    "stage2_conv": "features.3",
    "stage3_conv1": "features.6",
    "stage3_conv2": "features.8",
    "stage3_conv3": "features.10",
    "head_dense1": "classifier.1",
    "head_dense2": "classifier.4",
    "logits": "classifier.6",
}


def keras_name(model_name: str, path: str) -> str:
    """Raises LookupError, because KERAS_MODELS is empty."""
    raise LookupError(f"keras.applications has no {model_name}")


def torch_name(model_name: str, path: str) -> str:
    """Returns torchvision's parameter name for one of our weights."""
    layer, weight = path.split("/")
    return f"{_TORCH[layer]}.{TORCH_WEIGHTS[weight]}"


def torch_layout(model_name: str, path: str) -> tuple[int, int, int] | None:
    """Returns the (channels, height, width) that torchvision flattens for a dense kernel, or None.

    We flatten (height, width, channels), so the rows of the kernel must be permuted.
    """
    return (256, 6, 6) if path == "head_dense1/kernel" else None
