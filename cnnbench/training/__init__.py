"""Training: compression stages, the training loop, compiled steps, callbacks and logs."""
