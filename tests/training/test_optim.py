"""Schedules, optimizers and penalties against their formulas."""

import json
import math

import numpy as np
import pytest

from cnnbench.backend.lazy import keras, tf
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model
from cnnbench.optim.kernels import penalty
from cnnbench.optim.schedules import LearningRate
from cnnbench.recipe.sections import GradientClip, Group, Train
from cnnbench.registry.kinds import OPTIMIZERS, SCHEDULES
from cnnbench.training.optimizer import build_optimizer

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
    made = rate("one_cycle", rise=0.3, start=0.1, final=0.0)
    assert made.at(0) == pytest.approx(0.2)
    assert made.at(29) == pytest.approx(2.0)
    assert made.at(99) == pytest.approx(0.0, abs=1e-9)
    rates = [made.at(s) for s in range(100)]
    top = int(np.argmax(rates))
    assert all(np.diff(rates[: top + 1]) > 0) and all(np.diff(rates[top:]) < 0)


def test_plateau_falls_when_the_loss_does_not_and_remembers():
    made = rate("plateau", factor=0.1, patience=2)
    for epoch, loss in enumerate((1.0, 0.5, 0.5, 0.5), start=1):
        made.observe(loss, 10 * epoch)
    assert made.at(0) == pytest.approx(0.2)
    again = rate("plateau", factor=0.1, patience=2)
    again.restore(made.state())
    for one in (made, again):
        one.observe(0.5, 50)
        assert one.at(0) == pytest.approx(0.2)
        one.observe(0.5, 60)
        assert one.at(0) == pytest.approx(0.02)


def observed(made, losses, first_epoch=1):
    """The rates at the end of the epochs of 10 steps that have these validation losses."""
    found = []
    for epoch, loss in enumerate(losses, start=first_epoch):
        made.observe(loss, 10 * epoch)
        found.append(made.at(10 * epoch))
    return found


def test_plateau_does_not_count_epochs_that_end_within_the_warm_up():
    made = rate("plateau", warmup_epochs=3, factor=0.1, patience=2)
    # Low by chance at a low rate, then 2, 1, 1, 1: falls after two epochs without a lower loss.
    losses = [0.5, 0.5, 0.5, 2.0, 1.0, 1.0, 1.0]
    assert observed(made, losses)[3:] == pytest.approx([2.0, 2.0, 2.0, 0.2])


def test_plateau_counts_an_epoch_that_the_warm_up_ends_in():
    made = rate("plateau", warmup_epochs=0.5, factor=0.1, patience=2)
    assert observed(made, [1.0, 1.0, 1.0]) == pytest.approx([2.0, 2.0, 0.2])


@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_plateau_goes_on_from_a_checkpoint_within_and_after_the_warm_up(epochs):
    losses = [0.5, 0.5, 0.5, 2.0, 1.0, 1.0, 1.0]
    options = {"warmup_epochs": 3, "factor": 0.1, "patience": 2}
    whole, before, after = (rate("plateau", **options) for _ in range(3))
    observed(before, losses[:epochs])
    after.restore(json.loads(json.dumps(before.state())))
    expected = observed(whole, losses)[epochs:]
    assert observed(after, losses[epochs:], epochs + 1) == expected


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
    optimizer = build_optimizer(spec, Train(steps=1), weights)
    for _ in range(steps):
        optimizer.apply([tf.fill((2,), gradient) for _ in weights], weights)
    return [float(w.numpy()[0]) for w in weights]


DECOUPLED = [
    name
    for name in OPTIMIZERS.names()
    if "weight_decay" in OPTIMIZERS.spec_type(name).model_fields
    and OPTIMIZERS.get(name).facts.get("decoupled_decay", True)
]


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_weight_decay_leaves_biases_and_norms_alone(weights, name):
    found = after_a_step(weights, OPTIMIZERS.spec(name, lr=0.1, weight_decay=0.5))
    assert found == pytest.approx([1 - 0.1 * 0.5, 1, 1])


# The optimizers in float64: of a weight w, its gradients, the rate, and whether it is a kernel.


def sgd(w, gradients, lr, *, momentum=0.0, nesterov=False, **_):
    v = 0 * w
    for g in gradients:
        v = momentum * v - lr * g
        w = w + (momentum * v - lr * g if nesterov else v)
    return w


def adagrad(w, gradients, lr, **_):
    total = 0.1  # Keras's first accumulator
    for g in gradients:
        total = total + g**2
        w = w - lr * g / np.sqrt(total + 1e-7)
    return w


def rmsprop(w, gradients, lr, **_):
    v = 0 * w
    for g in gradients:
        v = 0.9 * v + 0.1 * g**2
        w = w - lr * g / np.sqrt(v + 1e-7)
    return w


def adam_directions(w, gradients, epsilon):
    """Kingma & Ba 2015, algorithm 1."""
    m = v = 0 * w
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        yield m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + epsilon)


def adam(w, gradients, lr, **_):
    return w - lr * sum(adam_directions(w, gradients, 1e-7))


def adamw(w, gradients, lr, *, is_kernel, **_):
    """Loshchilov & Hutter 2019, algorithm 2."""
    for direction in adam_directions(w, gradients, 1e-7):
        w = w - lr * (direction + 0.01 * is_kernel * w)
    return w


def lion(w, gradients, lr, **_):
    """Chen et al. 2023, algorithm 2."""
    m = 0 * w
    for g in gradients:
        w = w - lr * np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
    return w


def lamb(w, gradients, lr, **_):
    """You et al. 2020, algorithm 2, without weight decay."""
    for direction in adam_directions(w, gradients, 1e-6):
        w = w - lr * np.linalg.norm(w) / np.linalg.norm(direction) * direction
    return w


def lars(w, gradients, lr, *, is_kernel, trust=0.001, weight_decay=0.0, **_):
    """You et al. 2017, algorithm 1."""
    v = 0 * w
    for g in gradients:
        if is_kernel:
            norms = np.linalg.norm(w), np.linalg.norm(g)
            g = g + weight_decay * w
            g = trust * norms[0] / (norms[1] + weight_decay * norms[0]) * g
        v = 0.9 * v + lr * g
        w = w - v
    return w


FORMULAS = {
    "sgd": sgd,
    "momentum": lambda *args, **o: sgd(*args, momentum=0.9, **o),
    "nesterov": lambda *args, **o: sgd(*args, momentum=0.9, nesterov=True, **o),
    "adagrad": adagrad, "rmsprop": rmsprop, "adam": adam, "adamw": adamw,
    "lion": lion, "lamb": lamb, "lars": lars,
}  # fmt: skip
CASES = [(name, {}) for name in OPTIMIZERS.names()]
CASES += [("lars", {"weight_decay": 0.2, "trust": 0.1}), ("sgd", {"momentum": 0.5})]


def draws(count, seed=0):
    """Pairs of numbers that are not near 0, float32 so that both sides take the same."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], (count, 2))
    return (signs * rng.uniform(0.3, 2, (count, 2))).astype(np.float32)


def trained(spec, train=None, *, gradients, start=1):
    """The variables of a layer after a step along each gradient; the first is a kernel."""
    layer = Layer()
    layer.build((1,))
    variables = layer.trainable_variables
    for variable, value in zip(variables, draws(3, start), strict=True):
        variable.assign(value)
    optimizer = build_optimizer(spec, train or Train(steps=1), variables)
    for each in gradients:
        optimizer.apply([tf.constant(each) for _ in variables], variables)
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_steps_are_those_of_the_paper(name, options):
    gradients = draws(5)
    lr = 5.0 if name == "lars" else 0.02  # its trust ratios are small
    found = trained(OPTIMIZERS.spec(name, lr=lr, **options), gradients=gradients)
    exact = gradients.astype(np.float64)
    for i, start in enumerate(draws(3, 1).astype(np.float64)):
        expected = FORMULAS[name](start, exact, lr, is_kernel=i == 0, **options)
        assert found[i] - start == pytest.approx(expected - start, rel=1e-4, abs=2e-6)
        assert abs(expected - start).max() > 0.005


def test_lars_leaves_a_kernel_of_zeros_and_stands_still_without_a_gradient():
    layer = Layer()
    layer.build((1,))
    (kernel, *_), variables = layer.trainable_variables, layer.trainable_variables
    kernel.assign([0.0, 0.0])
    optimizer = build_optimizer(OPTIMIZERS.spec("lars", lr=0.1), Train(steps=1), variables)
    optimizer.apply([tf.zeros(2)] * 3, variables)
    assert kernel.numpy().tolist() == [0, 0] and variables[1].numpy().tolist() == [1, 1]
    optimizer.apply([tf.ones(2)] * 3, variables)
    assert kernel.numpy() == pytest.approx([-0.1, -0.1])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_group_learns_as_under_an_optimizer_of_its_own_rate(name):
    gradients = draws(5)
    options = {"weight_decay": 0.3} if name in (*DECOUPLED, "lars") else {}
    slow, fast = (
        trained(OPTIMIZERS.spec(name, lr=lr, **options), gradients=gradients) for lr in (0.01, 0.05)
    )
    groups = [Group(match="kernel|gamma", lr_scale=5.0), Group(match="gamma|bias", lr_scale=1.0)]
    found = trained(
        OPTIMIZERS.spec(name, lr=0.01, **options),
        Train(steps=1, groups=groups),
        gradients=gradients,
    )
    for each, expected in zip(found, (fast[0], slow[1], fast[2]), strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-5)


@pytest.mark.parametrize("name", DECOUPLED)
def test_a_group_decays_as_under_an_optimizer_of_its_own_decay(name):
    gradients = draws(4)
    half, none = (
        trained(OPTIMIZERS.spec(name, lr=0.05, weight_decay=decay), gradients=gradients)
        for decay in (0.2, 0.0)
    )
    assert not np.allclose(half[0], none[0], rtol=1e-3)
    for scale, expected in ((0.5, half), (0.0, none)):
        groups = [Group(match=".", weight_decay_scale=scale)]
        found = trained(
            OPTIMIZERS.spec(name, lr=0.05, weight_decay=0.4),
            Train(steps=1, groups=groups),
            gradients=gradients,
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_group_without_a_weight_is_refused_by_name(weights):
    for matches in (["nothing_of_this"], ["kernel", "bias|gamma", "gamma"]):
        train = Train(steps=1, groups=[Group(match=match) for match in matches])
        words = rf"'{matches[-1]}' matches no trainable weight.*kernel, .*bias"
        with pytest.raises(UsageError, match=words):
            build_optimizer(OPTIMIZERS.spec("sgd", lr=0.1), train, weights)


@pytest.mark.parametrize(
    ("model", "depths"),
    [
        ("resnet20", {"stem": 4, "stage1": 3, "stage2": 2, "stage3": 1, "logits": 0}),
        ("lenet5", {"stage1": 2, "stage2": 1, "head": 0, "logits": 0}),
    ],
)
def test_the_rate_decays_from_the_head_to_the_stem(model, depths):
    variables = build_model(model, (32, 32, 3), 10).trainable_variables
    before = [variable.numpy() for variable in variables]
    train = Train(steps=1, layer_decay=0.5, groups=[Group(match="/beta$", lr_scale=64.0)])
    if model == "lenet5":  # which has no norm
        train = Train(steps=1, layer_decay=0.5)
    optimizer = build_optimizer(OPTIMIZERS.spec("sgd", lr=0.25), train, variables)
    optimizer.apply([tf.ones(variable.shape) for variable in variables], variables)
    found = set()
    for variable, start in zip(variables, before, strict=True):
        stage = variable.path.split("/")[0].split("_")[0]
        found.add(stage)
        rate = 0.25 * 0.5 ** depths[stage] * (64 if variable.path.endswith("/beta") else 1)
        np.testing.assert_allclose(start - variable.numpy(), rate, rtol=1e-5)
    assert found == set(depths)


def clipped(gradients, clip, precision="float32"):
    """What SGD of rate 1 takes off weights of 0."""
    layer = Layer()
    layer.build((1,))
    variables = layer.trainable_variables
    for variable in variables:
        variable.assign([0.0, 0.0])
    train = Train(steps=1, gradient_clip=clip, precision=precision)
    optimizer = build_optimizer(OPTIMIZERS.spec("sgd", lr=1.0), train, variables)
    scale = optimizer.scale_loss(tf.constant(1.0))
    optimizer.apply([scale * tf.constant(g, tf.float32) for g in gradients], variables)
    return np.array([-variable.numpy() for variable in variables]), float(scale), optimizer


GRADIENTS = np.array([[3.0, -4.0], [0.0, 12.0], [0.1, 0.0]])


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_gradients_are_clipped_together_or_each_after_the_loss_scale_is_off(precision):
    found, scale, _ = clipped(GRADIENTS, GradientClip(norm=2.0), precision)
    assert scale == (1 if precision == "float32" else 2**15)
    length = np.sqrt((GRADIENTS**2).sum())
    np.testing.assert_allclose(found, GRADIENTS * 2 / length, rtol=1e-5)
    np.testing.assert_allclose(
        clipped(GRADIENTS, GradientClip(norm=99.0), precision)[0], GRADIENTS, rtol=1e-6
    )
    found, _, _ = clipped(GRADIENTS, GradientClip(value=3.5), precision)
    np.testing.assert_allclose(found, [[3, -3.5], [0, 3.5], [0.1, 0]], rtol=1e-6)


@pytest.mark.parametrize("clip", [GradientClip(norm=1.0), GradientClip(value=1.0)])
def test_clipping_hides_no_overflow_from_the_loss_scale(clip):
    found, scale, optimizer = clipped(
        [[np.inf, 0], [0, 0], [0, 0]], clip, precision="mixed_float16"
    )
    assert not found.any()
    assert float(optimizer.scale_loss(tf.constant(1.0))) == scale / 2


def test_penalty_is_that_of_the_kernels(weights):
    weights[0].assign([3.0, -4.0])
    with tf.GradientTape() as tape:
        found = penalty(weights, l1=0.1, l2=0.01)
    assert float(found) == pytest.approx(0.1 * 7 + 0.01 / 2 * 25)
    assert tape.gradient(found, weights[0].value).numpy() == pytest.approx([0.13, -0.14])
