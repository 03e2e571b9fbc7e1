"""Export formats: one file each, with `FORMAT`, `write` and `load`."""
