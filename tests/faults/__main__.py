"""Prints the scoreboard; exit code 1 if any try failed.

python -m tests.faults [--short] [ROW...]
"""

from __future__ import annotations

import argparse
import sys
import time

from . import damage, disks, downloads, hostile, images, kills, records, refusals, syscalls  # noqa: F401 - they register rows
from .harness import ROWS, score


def main() -> int:
    """Runs the rows asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, choices=[[], *sorted(ROWS)])
    parser.add_argument("--short", action="store_true", help="a tenth of the tries")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = False
    for number in arguments.rows or sorted(ROWS):
        row = ROWS[number]
        start = time.monotonic()
        count = max(1, row.full // 10) if arguments.short else row.full
        found = score(row, count, seed=arguments.seed)
        failed |= found.passed < found.total
        minutes = (time.monotonic() - start) / 60
        counted = f"{found.passed}/{found.total} in {minutes:.1f} min"
        print(f"{number:3d}. {row.name}: {counted}", flush=True)
        for failure in found.failures:
            print(f"     {failure}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
