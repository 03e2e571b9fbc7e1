"""Verification: how answers are compared, and what is within tolerance."""

from pathlib import Path

import numpy as np
import pytest

from cnnbench.tasks.agreement import BOUNDS, compare_calibration, passes, refusal, tolerance
from cnnbench.tasks.agreement import compare_logits as compare

ALIKE = {
    "max_abs_probability_diff": 0.001,
    "reference_nll": 0.1,
    "nll_diff": 0.0,
    "ece_diff": 0.0,
}


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
    for share, passed in ((0.009, True), (0.011, False)):
        theirs = reference.copy()
        theirs[7] += share * np.abs(reference).max()
        row = compare(reference, theirs, labels) | ALIKE | {"tolerance": 1.0}
        assert row["agreement"] == 1.0 and passes(row, "float32") is passed


@pytest.mark.parametrize("precision", BOUNDS)
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
    share = 0.6 * BOUNDS[precision].relative
    noisy = reference + share * random.normal(size=reference.shape).astype(np.float32)
    row = compare(reference, noisy, labels) | ALIKE | {"tolerance": 1.0}
    assert row["relative_logit_error"] == pytest.approx(share, rel=0.02)
    assert passes(row, precision)
    if precision == "float32":
        return
    # A few that are far larger, and that integers cannot hold, are not the measure of the others.
    reference[:20] *= 50
    row = compare(reference, np.clip(noisy, -5, 5), labels) | ALIKE | {"tolerance": 1.0}
    assert row["relative_logit_error"] == pytest.approx(share, rel=0.05)
    assert passes(row, precision)


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_line_of_another_slope_does_not_pass(precision):
    random = np.random.default_rng(0)
    reference = 5 * random.normal(size=(200, 10)).astype(np.float32) + 1
    for factor in (0.51, 0.9, 1.1, 1.5):
        row = compare(reference, factor * reference, np.zeros(200, int))
        assert row["logit_slope"] == pytest.approx(factor)
        assert not passes(row | ALIKE | {"tolerance": 1.0}, precision)
    # An equal shift of all classes has no influence on the slope.
    row = compare(reference, reference + 0.3, np.zeros(200, int))
    assert row["logit_slope"] == pytest.approx(1)
    assert compare(0 * reference, 0 * reference, np.zeros(200, int))["logit_slope"] == 1


@pytest.mark.parametrize("precision", BOUNDS)
def test_two_of_a_thousand_classes_may_not_change_places(precision):
    random = np.random.default_rng(0)
    reference = random.normal(size=(100, 1000)).astype(np.float32)
    order = np.arange(1000)
    order[[17, 18]] = 18, 17
    row = compare(reference, reference[:, order], np.zeros(100, int))
    assert row["relative_logit_error"] < 0.08 and row["class_logit_error"] > 0.7
    assert not passes(row | ALIKE | {"tolerance": 1.0}, precision)
    shifted = reference.copy()
    shifted[:, 5] += 0.5
    row = compare(reference, shifted, np.zeros(100, int))
    assert row["class_logit_error"] == pytest.approx(0.5, rel=0.05)
    assert not passes(row | ALIKE | {"tolerance": 1.0}, precision)


@pytest.mark.parametrize("precision", BOUNDS)
def test_each_image_that_may_change_its_class_may_move_the_calibration_error(answers, precision):
    reference, labels = answers
    row = compare(reference, reference, labels) | ALIKE | {"tolerance": 0.005}
    most = BOUNDS[precision].ece + 0.005
    assert passes(row | {"ece_diff": most + 1e-12}, precision)
    assert not passes(row | {"ece_diff": -(most + 1e-6)}, precision)


def test_calibration_is_compared_in_the_bins_of_the_network():
    expected = np.array([[0.7, 0.3], [0.668, 0.332], [0.9, 0.1], [0.1, 0.9]])
    moved = np.array([[0.69, 0.31], [0.666, 0.334], [0.89, 0.11], [0.11, 0.89]])
    labels = np.array([0, 1, 0, 1])
    nll = [-np.log(each[range(4), labels]) for each in (expected, moved)]
    found = compare_calibration((nll[0], expected), (nll[1], moved), labels)
    assert found["reference_nll"] == pytest.approx(nll[0].mean())
    assert found["nll_diff"] == pytest.approx((nll[1] - nll[0]).mean())
    # Of two in one bin, one is right: |1 - 1.368| becomes |1 - 1.356|; the others are right.
    assert found["ece_diff"] == pytest.approx((-0.012 + 2 * 0.01) / 4)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("nll_diff", 0.12, "difference in NLL 0.12"),
        ("ece_diff", -0.07, "difference in ECE -0.07"),
        ("nll_diff", None, "difference in NLL NaN"),
        ("logit_slope", 0.91, "slope of the logits 0.91"),
        ("relative_logit_error", 0.5, "relative error of the logits 0.5"),
        ("class_logit_error", 0.5, "error of the logits of a class 0.5"),
    ],
)
def test_what_is_out_of_its_bounds_is_named(answers, key, value, words):
    reference, labels = answers
    row = compare(reference, reference, labels) | ALIKE
    row |= {"tolerance": 0.01, "precision": "int8", "format": "tflite"}
    assert passes(row, "int8")
    assert not passes(row | {key: value}, "int8")
    told = str(refusal(row | {key: value}, Path("there"), "an option"))
    assert words in told and "an option" in told


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
