"""Evaluation of trained networks and artifacts, prediction, and comparison of runs."""
