"""PyTorch's names for the weights of a layer, and the options of its networks."""

from typing import Any

# Padding and epsilon of PyTorch, where those of TensorFlow are our default.
PYTORCH: dict[str, Any] = {"padding": "symmetric", "epsilon": 1e-5}
# Where torchvision has TensorFlow's epsilon.
SYMMETRIC: dict[str, Any] = {"padding": "symmetric"}

# torchvision's places in a convolution with its batch norm.
CONV, NORM = "0", "1"

TORCH_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
