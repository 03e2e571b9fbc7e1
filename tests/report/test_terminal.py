"""What training tells on a terminal, in a file and in a pipe."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from cnnbench.report import terminal

ROW = {
    "epoch": 1, "step": 50, "lr": 0.1, "train": {"loss": 1.0, "top1": 0.5}, "seconds": 9.0,
    "throughput_images_per_s": 80.0,
}  # fmt: skip
RUN = SimpleNamespace(path="runs/x")


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def lines_of(clock, seconds, first=0):
    """The lines of a training of 1000 steps, one of each of these durations."""
    file = io.StringIO()
    with terminal.shown(Console(file=file, width=30), clock) as callbacks:
        callbacks.started(RUN, 1000, first, [])
        for step, passed in enumerate(seconds, start=first + 1):
            clock.seconds += passed
            callbacks.progressed(step, 1.5, 0.25, 123.4)
    return [line for line in file.getvalue().splitlines() if "img/s" in line]


def test_a_file_has_a_plain_line_each_minute(clock):
    lines = lines_of(clock, seconds=[1.0] * 100, first=300)
    assert lines == ["step 359/1000  loss 1.500  top-1 0.250  123 img/s"]


def test_no_gap_is_longer_than_a_minute_where_calls_are_shorter(clock):
    lines = lines_of(clock, seconds=[25.0] * 10)
    assert [line.split()[1] for line in lines] == [f"{step}/1000" for step in (2, 4, 6, 8, 10)]


def test_calls_longer_than_a_minute_have_a_line_each(clock):
    assert len(lines_of(clock, seconds=[90.0] * 4)) == 4


def test_a_short_training_says_nothing_more(clock):
    assert lines_of(clock, seconds=[2.0] * 28) == []


def test_the_line_of_an_epoch_counts_too(clock):
    file = io.StringIO()
    with terminal.shown(Console(file=file, width=60), clock) as callbacks:
        callbacks.started(RUN, 100, 0, [])
        for step in (49, 50, 51, 52):
            clock.seconds += 20.0
            callbacks.progressed(step, 1.5, 0.25, 123.4)
            if step == 50:
                callbacks.epoch_ended(ROW)
    told = [line.split("  ")[0] for line in file.getvalue().splitlines()]
    assert told == ["run: runs/x, 100 steps", "step 50/100", "epoch", "step 52/100"]


def test_a_terminal_has_the_bar_and_no_more_lines(clock):
    file = io.StringIO()
    with terminal.shown(Console(file=file, force_terminal=True, width=100), clock) as callbacks:
        callbacks.started(RUN, 100, 0, [])
        for step in range(1, 5):
            clock.seconds += 90.0
            callbacks.progressed(step, 1.5, 0.25, 123.4)
    written = file.getvalue()
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in written and "img/s" in written
    assert "100  loss" not in written  # in the bar's line, the bar is between them


def test_by_default_it_writes_to_stderr(capsys):
    with terminal.shown() as callbacks:
        callbacks.noted("told")
    assert capsys.readouterr() == ("", "told\n")
