"""Published weights: presets, and loading them into our networks."""
