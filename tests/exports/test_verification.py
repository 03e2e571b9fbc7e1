"""Verification: how answers are compared, and what is within tolerance."""

from pathlib import Path

import numpy as np
import pytest

from cnnbench.tasks.agreement import compare_logits as compare
from cnnbench.tasks.agreement import passes, refusal, tolerance

ALIKE = {"max_abs_probability_diff": 0.001}


@pytest.fixture
def answers():
    """Logits of 1000 images, 200 of them wrong."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 1000)
    logits = random.normal(size=(1000, 10)).astype(np.float32)
    logits[np.arange(1000), labels] += 20
    logits[:200] = np.roll(logits[:200], 1, axis=1)
    return logits, labels


def test_a_comparison_is_a_plain_count(answers):
    reference, labels = answers
    theirs = reference + 0.25
    theirs[200:207] = np.roll(theirs[200:207], 1, axis=1)  # seven right answers become wrong
    row = compare(reference, theirs, labels)
    assert row["reference_top1"] == 0.8 and row["top1"] == pytest.approx(0.793)
    assert row["agreement"] == pytest.approx(0.993)
    order = np.argsort(-theirs, axis=1)
    in_five = [label in five for label, five in zip(labels, order[:, :5], strict=True)]
    assert row["top5"] == np.mean(in_five)
    assert row["max_abs_logit_diff"] == np.abs(reference - theirs).max()
    assert row["mean_abs_logit_diff"] == pytest.approx(np.abs(reference - theirs).mean())


@pytest.mark.parametrize(
    ("precision", "changed", "passed"),
    [
        ("float32", 1, True),
        ("float32", 2, False),
        ("float16", 5, True),
        ("float16", 6, False),
        ("dynamic", 10, True),
        ("dynamic", 11, False),
        ("int8", 10, True),
        ("int8", 11, False),
        ("int16x8", 11, False),
    ],
)
def test_each_precision_has_its_tolerance(answers, precision, changed, passed):
    reference, labels = answers
    theirs = reference.copy()
    # The largest logit and the second change places, by little: only the class changes.
    for row in range(500, 500 + changed):
        first, second = np.argsort(-theirs[row])[:2]
        reference[row, second] = reference[row, first] - 1e-3
        theirs[row] = reference[row]
        theirs[row, second] += 2e-3
    row = compare(reference, theirs, labels) | ALIKE | {"tolerance": tolerance(precision)}
    assert passes(row, precision) is passed
    row["tolerance"] = 0.02
    assert passes(row, precision)


def test_integers_may_be_wrong_elsewhere_if_they_are_right_as_often(answers):
    reference, labels = answers
    theirs = reference.copy()
    theirs[:20] = np.roll(reference[:20], -1, axis=1)  # right
    theirs[500:520] = np.roll(reference[500:520], 1, axis=1)  # wrong
    row = compare(reference, theirs, labels) | ALIKE | {"tolerance": 0.01}
    assert row["agreement"] == 0.96
    assert passes(row, "int8") and not passes(row, "float16")


def test_a_logit_of_float32_may_not_wander(answers):
    reference, labels = answers
    largest = np.abs(reference).max()
    for share, passed in ((0.009, True), (0.011, False)):
        row = compare(reference, reference + share * largest, labels) | ALIKE | {"tolerance": 1.0}
        assert row["agreement"] == 1.0 and passes(row, "float32") is passed


@pytest.mark.parametrize("precision", ["float16", "dynamic", "int8", "int16x8"])
def test_logits_of_another_size_or_of_no_image_do_not_pass(precision):
    """Where a network is right by chance alone, top-1 tells nothing."""
    random = np.random.default_rng(0)
    reference = random.normal(size=(1000, 100)).astype(np.float32)
    labels = random.integers(0, 100, 1000)
    always_first = np.zeros_like(reference)
    always_first[:, 0] = 3
    for theirs in (8 * reference, always_first, reference[::-1], 0 * reference):
        row = compare(reference, theirs, labels) | ALIKE | {"tolerance": 1.0}
        assert row["relative_logit_error"] > 0.5 and not passes(row, precision)
    noisy = reference + random.normal(size=reference.shape).astype(np.float32) / 4
    row = compare(reference, noisy, labels) | ALIKE | {"tolerance": 1.0}
    assert row["relative_logit_error"] == pytest.approx(0.25, rel=0.02)
    assert passes(row, precision)
    # A few that are far larger, and that integers cannot hold, are not the measure of the others.
    reference[:20] *= 50
    row = compare(reference, np.clip(noisy, -4, 4), labels) | ALIKE | {"tolerance": 1.0}
    assert row["relative_logit_error"] == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_what_is_not_finite_never_passes(answers, precision, value):
    reference, labels = answers
    theirs = reference.copy()
    theirs[3, 4] = value
    row = compare(reference, theirs, labels) | ALIKE | {"tolerance": 1.0, "format": "f"}
    assert not passes(row, precision)
    assert "NaN or infinite" in str(refusal(row | {"precision": precision}, Path("there")))


def test_of_equal_logits_the_first_is_named():
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    row = compare(logits, logits, np.array([0, 2]))
    assert row["top1"] == 0.5 and row["agreement"] == 1.0


@pytest.mark.parametrize("gap", [0.05, None])
def test_probabilities_of_another_function_are_not_let_through(answers, gap):
    reference, labels = answers
    row = compare(reference, reference, labels) | {"tolerance": 1.0, "precision": "int8"}
    assert passes(row | ALIKE, "int8")
    row |= {"max_abs_probability_diff": gap, "format": "tflite"}
    assert not passes(row, "int8")
    assert "probabilities do not match the logits" in str(refusal(row, Path("x")))
