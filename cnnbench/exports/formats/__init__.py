"""Export formats: one module each, with `FORMAT`, `write` and `load`."""
