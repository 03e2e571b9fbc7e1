"""PyTorch's names for the weights of a layer, and the options of its networks."""

# Padding and epsilon of PyTorch, where those of TensorFlow are our default.
PYTORCH = {"padding": "symmetric", "epsilon": 1e-5}

TORCH_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
