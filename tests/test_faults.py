"""Faults made on purpose, the short form; `make faults` makes all of them."""

import pytest
from faults import damage, disks, downloads, hostile, images, kills, records, refusals, syscalls  # noqa: F401 - they register rows
from faults.harness import ROWS, score


@pytest.mark.parametrize("number", [row.number for row in ROWS.values() if row.short])
def test_every_try_of_a_row_holds(number):
    found = score(ROWS[number], ROWS[number].short)
    assert found.total and not found.failures, "\n".join(found.failures)
