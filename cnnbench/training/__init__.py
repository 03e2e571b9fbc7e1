"""Training: stages, the loop, the compiled steps, and what they report."""
