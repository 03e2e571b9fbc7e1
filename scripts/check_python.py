"""Exits with a clear message if this Python version cannot run cnnbench."""

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"cnnbench needs Python 3.11, 3.12 or 3.13; this is {found}: make PYTHON=python3.11 …")
