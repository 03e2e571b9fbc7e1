"""What training tells on a terminal, in a file and in a pipe."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from cnnbench.report import terminal
from cnnbench.tasks.task import task_named

ROW = {
    "epoch": 1, "step": 50, "lr": 0.1, "train": {"loss": 1.0, "top1": 0.5}, "seconds": 9.0,
    "throughput_images_per_s": 80.0,
}  # fmt: skip
RECIPE = SimpleNamespace(task=task_named("classification"))
RUN = SimpleNamespace(path="runs/x", recipe=RECIPE)
ODD_RUN = SimpleNamespace(path="runs/small[1]\x1b", recipe=RECIPE)
EPOCH = {
    "epoch": 3, "step": 15, "lr": 0.0123456, "train": {"loss": 1.25, "top1": 0.5},
    "throughput_images_per_s": 81.6, "seconds": 9.7,
}  # fmt: skip


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


@pytest.fixture
def terminal_of_a_person(monkeypatch):
    """Rich draws a bar as on a terminal, with whatever it takes to move the cursor."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def lines(capsys) -> list[str]:
    """What was written to stderr; to stdout nothing may be."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_training_tells_where_it_is_what_is_odd_and_where_it_goes_on(capsys):
    with terminal.shown() as callbacks:
        callbacks.started(ODD_RUN, 15, 6, ["float32 is slow [here]", "a\x07bell"])
    assert lines(capsys) == [
        r"run: runs/small[1]\x1b, 15 steps",
        "float32 is slow [here]",
        r"a\x07bell",
        "resumed at step 6",
    ]


def test_a_training_that_begins_is_not_told_to_be_resumed(capsys):
    with terminal.shown() as callbacks:
        callbacks.started(ODD_RUN, 15, 0, [])
    assert len(lines(capsys)) == 1


def test_an_epoch_has_a_line_of_its_own(capsys):
    with terminal.shown() as callbacks:
        callbacks.started(ODD_RUN, 15, 0, [])
        callbacks.epoch_ended(EPOCH)
        callbacks.epoch_ended(EPOCH | {"validation": {"loss": 2.0, "top1": 0.4321}})
    _, without, with_validation = lines(capsys)
    assert without == (
        "epoch   3  step     15  lr 0.01235  train: loss 1.2500 top-1 0.5000  82 img/s  10 s"
    )
    assert "  validation: loss 2.0000 top-1 0.4321  82 img/s" in with_validation


def test_a_long_line_is_not_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with terminal.shown() as callbacks:
        callbacks.noted("word " * 30 + "end")
    assert lines(capsys) == ["word " * 30 + "end"]


def test_where_nobody_looks_there_is_no_bar(capsys):
    with terminal.shown() as callbacks:
        callbacks.started(ODD_RUN, 15, 0, [])
        callbacks.progressed(5, 1.5, 0.25, 99.6)
    assert lines(capsys) == [r"run: runs/small[1]\x1b, 15 steps"]


def test_a_bar_tells_the_step_and_how_well_it_goes(capsys, terminal_of_a_person):
    with terminal.shown() as callbacks:
        callbacks.started(ODD_RUN, 15, 0, [])
        callbacks.progressed(5, 1.5, 0.25, 99.6)
    shown = capsys.readouterr().err
    assert "step 5/15" in shown and "loss 1.500  top-1 0.250  100 img/s" in shown


def test_a_download_tells_how_much_has_come(capsys, terminal_of_a_person):
    with terminal.downloading("resnet18.tv_in1k") as report:
        report(0, 46_000_000)
        report(23_000_000, 46_000_000)
    shown = capsys.readouterr().err
    assert "resnet18.tv_in1k" in shown and "23.0/46.0 MB" in shown


def test_a_download_where_nobody_looks_writes_nothing(capsys):
    with terminal.downloading("x") as report:
        report(1, None)
    assert "".join(lines(capsys)).strip() == ""
