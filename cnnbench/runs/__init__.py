"""Run directories: creating, finding, locking, checkpoints, and restoring the network."""
