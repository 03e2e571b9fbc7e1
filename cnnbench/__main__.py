"""`python -m cnnbench` is the command line."""

from cnnbench.cli.main import main

main()
