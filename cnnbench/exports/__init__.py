"""Exports: writing a trained network for other run-times, and verifying each file."""
