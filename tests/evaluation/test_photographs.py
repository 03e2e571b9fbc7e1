"""The class of a photograph by its name, and what guessing would reach."""

from pathlib import Path

import pytest
from scipy.stats import binom

from cnnbench.data.sources.imagenet import class_names
from cnnbench.evaluation.photographs import at_least_by_guessing, label_of

CLASSES = ["tench", "great white shark", "crane (n02012849)", "Crane"]


@pytest.mark.parametrize(("path", "label"), [
    ("tench/1.jpg", "tench"), ("Great_White_Shark/a/1.jpg", "great white shark"),
    ("n01440764/x.jpg", "tench"), ("n01440764_tench.JPEG", "tench"), ("tench_2.jpg", "tench"),
    ("n02012849_crane.JPEG", None), ("tench.jpg", "tench"), ("other/1.jpg", None),
    ("tench/n01484850_shark.JPEG", "tench"),
])  # fmt: skip
def test_the_class_of_a_photograph(path, label):
    assert label_of(Path(path), CLASSES[:2], class_names()) == label


def test_every_synset_is_a_class():
    names = class_names()
    for synset, name in list(names.items())[::50]:
        assert label_of(Path(f"{synset}_x.JPEG"), list(names.values()), names) == name


@pytest.mark.parametrize(("hits", "count", "classes"), [
    (0, 10, 1000), (1, 1, 1000), (3, 100, 10), (50, 100, 2), (400, 5000, 3),
])  # fmt: skip
def test_hits_by_guessing_are_binomial(hits, count, classes):
    expected = binom.sf(hits - 1, count, 1 / classes)
    assert at_least_by_guessing(hits, count, classes) == pytest.approx(expected, rel=1e-7)
