"""`python -m cnnbench` is the command line."""

from cnnbench.cli import main

main()
