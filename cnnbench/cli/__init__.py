"""The command line: one module per group of commands."""

from cnnbench.cli.app import cli, main

__all__ = ["cli", "main"]
