"""Names of Wide ResNet's weights in torchvision, the same as ResNet's."""

from __future__ import annotations

from cnnbench.models.pretrained.names.resnet import torch_name

__all__ = ["KERAS_MODELS", "TORCH_MODELS", "keras_name", "torch_name"]

KERAS_MODELS: dict[str, str] = {}
# The CIFAR variants are in neither library.
TORCH_MODELS = {
    "wide_resnet50_2": "torchvision:wide_resnet50_2",
    "wide_resnet101_2": "torchvision:wide_resnet101_2",
}
TORCH_ALIASES = {f"timm:{name}": reference for name, reference in TORCH_MODELS.items()}


def keras_name(model_name: str, path: str) -> str:
    """Raises LookupError, because KERAS_MODELS is empty."""
    raise LookupError(f"keras.applications has no {model_name}")
