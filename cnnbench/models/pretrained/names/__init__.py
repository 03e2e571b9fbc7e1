"""Weight names in published checkpoints, one module per family."""
