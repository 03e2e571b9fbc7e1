"""Evaluation: accuracy, calibration, robustness, prediction and comparison."""
