"""Names of weights in published checkpoints, one module a family."""
