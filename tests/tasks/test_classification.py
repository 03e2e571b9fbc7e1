"""Losses and metrics against their formulas."""

import json
import tracemalloc

import numpy as np
import pytest

from cnnbench.backend.lazy import keras, tf
from cnnbench.registry.kinds import LOSSES
from cnnbench.tasks.classification import MAX_CLASSES_IN_MATRIX
from cnnbench.tasks.metrics import Confusion, calibration_error, in_top_k
from cnnbench.tasks.task import task_named

LOGITS = tf.constant([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])
LABELS = tf.constant([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
S = 1 / (1 + np.exp(-LOGITS.numpy()))


def loss(name, **options):
    return LOSSES.build(LOSSES.spec(name, **options), LOGITS, LABELS).numpy()


def test_cross_entropy():
    assert loss("cross_entropy") == pytest.approx(-np.log([P[0, 0], P[1, 1]]), rel=1e-5)
    smooth = LABELS.numpy() * 0.7 + 0.1
    expected = -(smooth * np.log(P)).sum(axis=1)
    assert loss("cross_entropy", label_smoothing=0.3) == pytest.approx(expected, rel=1e-5)


def test_mean_squared_error():
    expected = ((P - LABELS.numpy()) ** 2).sum(axis=1)
    assert loss("mean_squared_error") == pytest.approx(expected, rel=1e-5)


def test_binary_cross_entropy():
    y = LABELS.numpy()
    expected = -(y * np.log(S) + (1 - y) * np.log(1 - S)).mean(axis=1)
    assert loss("binary_cross_entropy") == pytest.approx(expected, rel=1e-5)


def test_focal():
    y = LABELS.numpy()
    right = np.where(y == 1, S, 1 - S)
    weight = np.where(y == 1, 0.25, 0.75)
    expected = (-weight * (1 - right) ** 2 * np.log(right)).sum(axis=1)
    assert loss("focal") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_is_per_example_and_falls_along_its_gradient(name):
    spec = LOSSES.spec(name)
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        value = LOSSES.build(spec, logits, LABELS)
    assert value.shape == (2,)
    logits.assign_sub(0.01 * tape.gradient(value, logits))
    assert np.all(LOSSES.build(spec, logits, LABELS).numpy() < value.numpy())
    served = task_named("classification").serve(LOGITS, name)
    assert np.all(served["probabilities"].numpy() >= 0)
    assert np.all(served["logits"].numpy() == LOGITS.numpy())


def measured(logits, labels, loss):
    task, spec = task_named("classification"), LOSSES.spec(loss)
    outputs = {"logits": tf.constant(logits, tf.float32)}
    return task.measures(spec, outputs, tf.constant(labels))


def test_the_likelihood_of_a_label_has_no_floor():
    nll = measured([[0.0, 200.0], [1e4, 0.0]], [0, 0], "cross_entropy")["nll"].numpy()
    assert nll == pytest.approx([200, 0])
    nll = measured([[-300.0, 200.0, -500.0], [-300.0, -250.0, -500.0]], [0, 0], "focal")["nll"]
    assert nll.numpy() == pytest.approx([300, 50])


def test_sigmoids_are_a_distribution_in_the_likelihood_and_as_served_in_the_calibration(random):
    logits = random.normal(size=(50, 4)) * 3
    labels = random.integers(0, 4, 50)
    found = measured(logits, labels, "binary_cross_entropy")
    sigmoids = 1 / (1 + np.exp(-logits))
    shares = sigmoids / sigmoids.sum(axis=1, keepdims=True)
    assert found["nll"].numpy() == pytest.approx(-np.log(shares[range(50), labels]), rel=1e-4)
    assert found["confidence"].numpy() == pytest.approx(sigmoids.max(axis=1), rel=1e-4)
    assert found["predicted"].numpy().tolist() == sigmoids.argmax(axis=1).tolist()
    # A network that calls every class certain is right about the label, and tells nothing of it.
    sure = measured(np.full((1, 4), 30.0), [2], "binary_cross_entropy")
    assert sure["nll"].numpy() == pytest.approx([np.log(4)])


def test_top_k_counts_ties_against_the_network():
    logits = tf.constant([[0.1, 0.9, 0.5], [1.0, 1.0, 1.0], [np.nan, 1.0, 2.0]])
    labels = tf.constant([2, 0, 0])
    assert in_top_k(logits, labels, 1).numpy().tolist() == [False, False, False]
    assert in_top_k(logits, labels, 2).numpy().tolist() == [True, False, False]
    assert in_top_k(logits, tf.constant([1, 1, 2]), 1).numpy().tolist() == [True, False, False]
    reference = keras.ops.in_top_k(labels[:1], logits[:1], 2).numpy()
    assert in_top_k(logits[:1], labels[:1], 2).numpy() == reference


def test_calibration_error_of_known_bins():
    confidence = np.array([0.95] * 10 + [0.65] * 10)
    right = np.array([True] * 5 + [False] * 5 + [True] * 10)
    # Half right at 0.95, all right at 0.65.
    assert calibration_error(confidence, right) == pytest.approx((0.45 + 0.35) / 2)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_confusion_has_true_classes_as_rows():
    found = Confusion(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2]), 3)
    assert found.matrix().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found.examples().tolist() == [2, 1, 1] and found.right().tolist() == [1, 1, 1]


def test_mistakes_are_the_entries_beside_the_diagonal_in_order_of_their_counts(random):
    labels, predicted = random.integers(0, 9, (2, 500))
    found = Confusion(predicted, labels, 9)
    matrix = np.zeros((9, 9), int)
    for true, guess in zip(labels, predicted, strict=True):
        matrix[true, guess] += 1
    assert found.matrix().tolist() == matrix.tolist()
    pairs, others = found.mistakes(20)
    assert [count for *_, count in pairs] == sorted(matrix[~np.eye(9, dtype=bool)])[:-21:-1]
    assert all(matrix[true, guess] == count and true != guess for true, guess, count in pairs)
    assert others + sum(count for *_, count in pairs) == (labels != predicted).sum()
    assert len(found.mistakes(100)[0]) == np.count_nonzero(matrix) - 9
    assert found.mistakes(100)[1] == 0


def summarized(classes, examples, random) -> dict:
    labels, predicted = random.integers(0, classes, (2, examples)).astype(np.int32)
    right = labels == predicted
    values = np.ones(examples, np.float32)
    measured = {
        "loss": values, "nll": values, "top1": right, "top5": right, "predicted": predicted,
        "confidence": values / 2,
    }  # fmt: skip
    names = [f"n{i:08d} with a name of some forty characters" for i in range(classes)]
    return task_named("classification").summary(measured, labels, names)


def test_what_is_kept_of_an_image_does_not_grow_with_the_number_of_classes():
    found = measured(np.zeros((2, 22_000)), [0, 1], "cross_entropy")
    assert {value.shape.rank for value in found.values()} == {1}


def test_an_evaluation_of_22000_classes_is_small_in_memory_and_on_disk(random):
    tracemalloc.start()
    try:
        found = summarized(22_000, 200_000, random)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    assert len(json.dumps(found, indent=1)) < 5e6
    assert len(found["per_class"]) == found["confusion"]["classes"] == 22_000
    wrong = sum(count for *_, count in found["confusion"]["mistakes"])
    right = sum(row["top1"] * row["examples"] for row in found["per_class"] if row["examples"])
    assert wrong + found["confusion"]["other_mistakes"] + right == pytest.approx(200_000)
    rows = task_named("classification").evaluation_tables(found)
    assert rows == []


def test_pairs_of_classes_beyond_32_bits_are_told_apart():
    last = np.array([99_999], np.int32)
    found = Confusion(last - 1, last, 100_000)
    assert found.mistakes(5) == ([[99_999, 99_998, 1]], 0)


def test_few_classes_have_a_whole_matrix(random):
    few = summarized(MAX_CLASSES_IN_MATRIX, 500, random)["confusion"]
    assert np.shape(few) == (MAX_CLASSES_IN_MATRIX,) * 2 and np.sum(few) == 500
    assert "mistakes" in summarized(MAX_CLASSES_IN_MATRIX + 1, 500, random)["confusion"]
