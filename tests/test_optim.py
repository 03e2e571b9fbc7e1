"""Schedules, optimizers and penalties against their formulas."""

import math

import numpy as np
import pytest

from cnnbench.lazy import keras, tf
from cnnbench.optim import build_optimizer, penalty
from cnnbench.parts import OPTIMIZERS, SCHEDULES
from cnnbench.schedules import LearningRate

REQUIRED = {"step": {"epochs": [2, 4]}}


def rate(name, total=100, per_epoch=10, lr=2.0, warmup_epochs=0, **options):
    spec = SCHEDULES.spec(name, warmup_epochs=warmup_epochs, **options)
    return LearningRate(spec, lr, total, per_epoch)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_warm_up_comes_before_any_schedule(name):
    made = rate(name, warmup_epochs=2, **REQUIRED.get(name, {}))
    assert [made.at(step) for step in (0, 9, 19)] == pytest.approx([0.1, 1.0, 2.0])
    plain = rate(name, total=80, **REQUIRED.get(name, {}))
    assert [made.at(20 + s) for s in range(80)] == [plain.at(s) for s in range(80)]
    assert all(math.isfinite(made.at(step)) and made.at(step) >= 0 for step in range(100))


def test_constant():
    assert {rate("constant").at(step) for step in range(100)} == {2.0}


def test_step_falls_at_its_epochs():
    made = rate("step", epochs=[2, 4.5], factor=0.5)
    assert [made.at(s) for s in (0, 19, 20, 44, 45, 99)] == [2, 2, 1, 1, 0.5, 0.5]


def test_exponential():
    made = rate("exponential", factor=0.5, epochs=2)
    assert [made.at(s) for s in (0, 20, 40)] == pytest.approx([2, 1, 0.5])
    assert made.at(10) == pytest.approx(2 * 0.5**0.5)
    stairs = rate("exponential", factor=0.5, epochs=2, staircase=True)
    assert [stairs.at(s) for s in (19, 20)] == [2, 1]


def test_cosine_at_its_corners():
    made = rate("cosine", final=0.1)
    assert [made.at(s) for s in (0, 50, 100)] == pytest.approx([2, 1.1, 0.2])
    assert made.at(25) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))


def test_cosine_restarts_at_its_corners():
    made = rate("cosine_restarts", epochs=1, multiply=2, total=70)
    for start, length in ((0, 10), (10, 20), (30, 40)):
        assert made.at(start) == pytest.approx(2.0)
        assert made.at(start + length // 2) == pytest.approx(1.0)
        last = 1 + math.cos(math.pi * (length - 1) / length)
        assert made.at(start + length - 1) == pytest.approx(last)


def test_one_cycle_at_its_corners():
    made = rate("one_cycle", total=101, rise=0.3, start=0.1, final=0.0)
    assert made.at(0) == pytest.approx(0.2)
    assert made.at(31) == pytest.approx(2.0, rel=1e-3)
    assert made.at(100) == pytest.approx(0.0, abs=1e-9)
    rates = [made.at(s) for s in range(101)]
    top = int(np.argmax(rates))
    assert all(np.diff(rates[: top + 1]) > 0) and all(np.diff(rates[top:]) < 0)


def test_plateau_falls_when_the_loss_does_not_and_remembers():
    made = rate("plateau", factor=0.1, patience=2)
    for loss in (1.0, 0.5, 0.5, 0.5):
        made.observe(loss)
    assert made.at(0) == pytest.approx(0.2)
    again = rate("plateau", factor=0.1, patience=2)
    again.restore(made.state())
    for one in (made, again):
        one.observe(0.5)
        assert one.at(0) == pytest.approx(0.2)
        one.observe(0.5)
        assert one.at(0) == pytest.approx(0.02)


class Layer(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(2,), initializer="ones")
        self.bias = self.add_weight(name="bias", shape=(2,), initializer="ones")
        self.gamma = self.add_weight(name="gamma", shape=(2,), initializer="ones")


@pytest.fixture
def weights():
    layer = Layer()
    layer.build((1,))
    return layer.trainable_variables


def after_a_step(weights, spec, gradient=0.0, steps=1):
    optimizer = build_optimizer(spec, weights, loss_scaling=False)
    for _ in range(steps):
        optimizer.apply([tf.fill((2,), gradient) for _ in weights], weights)
    return [float(w.numpy()[0]) for w in weights]


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if n != "adam"])
def test_decoupled_weight_decay_leaves_biases_and_norms_alone(weights, name):
    found = after_a_step(weights, OPTIMIZERS.spec(name, lr=0.1, weight_decay=0.5))
    assert found == pytest.approx([1 - 0.1 * 0.5, 1, 1])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sgd", {}, 1 - 0.1 - 0.1),
        ("momentum", {"momentum": 0.5}, 1 - 0.1 - 0.15),
        ("nesterov", {"momentum": 0.5}, 1 - 0.15 - 0.175),
        ("adagrad", {}, 1 - 0.1 / math.sqrt(1.1) - 0.1 / math.sqrt(2.1)),
        ("rmsprop", {"rho": 0.5}, 1 - 0.1 / math.sqrt(0.5) - 0.1 / math.sqrt(0.75)),
        ("adam", {}, 0.8),
        ("adamw", {"weight_decay": 0.0}, 0.8),
    ],
)
def test_two_steps_along_a_gradient_of_one(weights, name, options, expected):
    found = after_a_step(weights, OPTIMIZERS.spec(name, lr=0.1, **options), 1.0, steps=2)
    assert found == pytest.approx([expected] * 3, abs=1e-5)


def test_penalty_is_that_of_the_kernels(weights):
    weights[0].assign([3.0, -4.0])
    with tf.GradientTape() as tape:
        found = penalty(weights, l1=0.1, l2=0.01)
    assert float(found) == pytest.approx(0.1 * 7 + 0.01 / 2 * 25)
    assert tape.gradient(found, weights[0].value).numpy() == pytest.approx([0.13, -0.14])
