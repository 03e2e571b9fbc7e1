"""Tasks: what a network is trained for, its losses and its metrics."""
