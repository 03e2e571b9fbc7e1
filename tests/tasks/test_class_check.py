"""The class of a photograph by its path, and what guessing would reach."""

from pathlib import Path

import pytest
from scipy.stats import binom

from cnnbench.data.sources.imagenet import class_names
from cnnbench.errors import UsageError
from cnnbench.tasks.photographs import ClassCheck, at_least_by_guessing, fewest
from cnnbench.tasks.task import Task

CLASSES = ["tench", "great white shark", "crane (n02012849)", "Crane"]


@pytest.mark.parametrize(("path", "label"), [
    ("tench/1.jpg", "tench"), ("Great_White_Shark/a/1.jpg", "great white shark"),
    ("n01440764/x.jpg", "tench"), ("n01440764_tench.JPEG", "tench"), ("tench_2.jpg", "tench"),
    ("n02012849_crane.JPEG", None), ("tench.jpg", "tench"), ("other/1.jpg", None),
    ("tench/n01484850_shark.JPEG", "tench"),
])  # fmt: skip
def test_the_class_of_a_photograph(path, label):
    assert ClassCheck(CLASSES[:2], class_names()).label(Path(path)) == label


def test_every_synset_is_a_class():
    names = class_names()
    check = ClassCheck(list(names.values()), names)
    for synset, name in list(names.items())[::50]:
        assert check.label(Path(f"{synset}_x.JPEG")) == name


@pytest.mark.parametrize(("hits", "count", "classes"), [
    (0, 10, 1000), (1, 1, 1000), (3, 100, 10), (50, 100, 2), (400, 5000, 3),
])  # fmt: skip
def test_hits_by_guessing_are_binomial(hits, count, classes):
    expected = binom.sf(hits - 1, count, 1 / classes)
    assert at_least_by_guessing(hits, count, classes) == pytest.approx(expected, rel=1e-7)


def test_a_network_that_guesses_is_refused():
    check = ClassCheck(["a", "b"], {})
    labels = ["a"] * 8
    right, wrong = ([{"top": [{"class": name}]}] * 8 for name in "ab")
    assert check.summary(labels, right, Path("photos")) == {"top1": 1.0, "top5": 1.0}
    assert check.refusal(labels, right, Path("run")) is None
    refusal = check.refusal(labels, wrong, Path("run"))
    assert "0 of 8 photographs" in str(refusal) and refusal.where == "run"


@pytest.mark.parametrize(("classes", "count"), [(2, 7), (10, 2), (1000, 1)])
def test_the_fewest_photographs_that_show_something(classes, count):
    assert fewest(classes) == count
    assert at_least_by_guessing(count, count, classes) <= 0.01
    assert count == 1 or at_least_by_guessing(count - 1, count - 1, classes) > 0.01


def test_a_task_that_reads_nothing_from_paths_refuses():
    class Silent(Task):
        name = "silent"

    with pytest.raises(UsageError, match="photographs have no classes for silent"):
        Silent().photograph_check((), {})
