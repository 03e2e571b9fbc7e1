"""Faults made on purpose, in real processes: `python -m tests.faults` prints the scoreboard."""
