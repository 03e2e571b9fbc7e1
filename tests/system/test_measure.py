"""Measurements of the current process."""

import pytest

from cnnbench.system.measure import latency_ms, latency_percentiles_ms


def test_percentiles_are_of_milliseconds():
    seconds = [0.001 * i for i in range(1, 102)]
    assert latency_percentiles_ms(seconds) == {"p50": 51.0, "p95": 96.0}


def test_the_first_two_calls_are_not_measured(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 19.0, 20.0, 20.002, 30.0, 30.002, 40.0, 40.002])
    monkeypatch.setattr("cnnbench.system.measure.time.perf_counter", lambda: next(clock))
    calls = []
    found = latency_ms(lambda: calls.append(0), 3)
    assert len(calls) == 5
    assert found == {"p50": pytest.approx(2.0), "p95": pytest.approx(2.0)}
