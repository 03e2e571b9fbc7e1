"""Optimizers under a changing rate and schedules, against the code of the libraries they follow."""

import math
import re

import numpy as np
import pytest
from conftest import RECIPES

from cnnbench import load_recipe
from cnnbench.backend.lazy import keras, tf
from cnnbench.optim.schedules import LearningRate
from cnnbench.recipe.sections import Group, Train
from cnnbench.registry.kinds import OPTIMIZERS, SCHEDULES
from cnnbench.training.optimizer import build_optimizer

RATES = (0.5, 0.5, 0.05, 0.2, 0.005, 0.005)
GRADIENTS = np.random.default_rng(0).normal(size=(len(RATES), 3)).astype(np.float32)


def trained(spec, train=None):
    """A weight of ones after a step along each gradient at its rate."""
    weight = keras.Variable(np.ones(3, np.float32), name="kernel")
    optimizer = build_optimizer(spec, train or Train(steps=1), [weight])
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        optimizer.learning_rate.assign(rate)
        optimizer.apply([tf.constant(gradient)], [weight])
    return weight.numpy()


def pytorch_sgd(momentum, nesterov, rate_scale=1.0):
    """The algorithm in the documentation of torch.optim.SGD, in float64."""
    weight, buffer = np.ones(3), None
    for gradient, rate in zip(GRADIENTS.astype(np.float64), RATES, strict=True):
        step = gradient
        if momentum:
            buffer = gradient if buffer is None else momentum * buffer + gradient
            step = gradient + momentum * buffer if nesterov else buffer
        weight = weight - rate_scale * rate * step
    return weight


def keras_sgd(momentum, nesterov):
    """The update rule in the documentation of keras.optimizers.SGD, in float64."""
    weight, velocity = np.ones(3), np.zeros(3)
    for gradient, rate in zip(GRADIENTS.astype(np.float64), RATES, strict=True):
        velocity = momentum * velocity - rate * gradient
        weight = weight + (momentum * velocity - rate * gradient if nesterov else velocity)
    return weight


def rmsprop(initial, momentum):
    """ApplyRMSProp of TensorFlow 1, whose slot "rms" is of ones, in float64."""
    weight, square, velocity = np.ones(3), np.full(3, initial), np.zeros(3)
    for gradient, rate in zip(GRADIENTS.astype(np.float64), RATES, strict=True):
        square = square + (gradient**2 - square) * (1 - 0.9)
        velocity = momentum * velocity + rate * gradient / np.sqrt(square + 1e-3)
        weight = weight - velocity
    return weight


def adagrad(initial):
    """Duchi et al. 2011, figure 1, for a diagonal matrix and no projection, in float64."""
    weight, squares = np.ones(3), np.full(3, initial)
    for gradient, rate in zip(GRADIENTS.astype(np.float64), RATES, strict=True):
        squares = squares + gradient**2
        weight = weight - rate * gradient / np.sqrt(squares)
    return weight


@pytest.mark.parametrize(
    ("name", "momentum", "nesterov"),
    [("sgd", 0.0, False), ("momentum", 0.9, False), ("nesterov", 0.85, True)],
)
def test_the_velocity_sums_steps_or_gradients(name, momentum, nesterov):
    by_steps, by_gradients = (
        OPTIMIZERS.spec(name, lr=1.0, momentum=momentum, velocity=velocity)
        for velocity in ("steps", "gradients")
    )
    steps, gradients = keras_sgd(momentum, nesterov), pytorch_sgd(momentum, nesterov)
    np.testing.assert_allclose(trained(by_steps), steps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trained(by_gradients), gradients, rtol=1e-4, atol=1e-6)
    assert (abs(steps - gradients).max() > 0.1) == (momentum > 0)
    grouped = trained(by_gradients, Train(steps=1, groups=[Group(match="kernel", lr_scale=0.5)]))
    expected = pytorch_sgd(momentum, nesterov, rate_scale=0.5)
    np.testing.assert_allclose(grouped, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("initial", [0.0, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_mean_square_of_rmsprop_starts_as_asked(initial, momentum):
    options = {"lr": 1.0, "rho": 0.9, "momentum": momentum, "epsilon": 1e-3, "initial": initial}
    spec = OPTIMIZERS.spec("rmsprop", **options)
    np.testing.assert_allclose(trained(spec), rmsprop(initial, momentum), rtol=1e-4, atol=1e-5)
    grouped = trained(spec, Train(steps=1, groups=[Group(match="kernel")]))
    np.testing.assert_allclose(grouped, rmsprop(initial, momentum), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("initial", [0.0, 0.1])
def test_the_squares_of_adagrad_start_as_asked(initial):
    spec = OPTIMIZERS.spec("adagrad", lr=1.0, initial=initial, epsilon=1e-12)
    np.testing.assert_allclose(trained(spec), adagrad(initial), rtol=1e-4, atol=1e-6)


def rates(name, total, **options):
    made = LearningRate(SCHEDULES.spec(name, **options), 2.0, total, per_epoch=10)
    return np.array([made.at(step) for step in range(total)])


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize(("total", "rise"), [(100, 0.3), (20, 0.25), (101, 0.3), (7, 0.5)])
def test_one_cycle_has_the_rates_of_pytorch(anneal, total, rise):
    """torch.optim.lr_scheduler.OneCycleLR with max_lr 2, div_factor 25 and final_div_factor 1e4."""
    low, high, least = 2.0 / 25, 2.0, 2.0 / 25 / 1e4
    phases = [(0.0, rise * total - 1, low, high), (rise * total - 1, total - 1, high, least)]
    expected = []
    for step in range(total):
        begin, end, first, last = phases[0] if step <= phases[0][1] else phases[1]
        share = (step - begin) / (end - begin)
        if anneal == "cosine":
            expected.append(last + (first - last) / 2 * (1 + math.cos(math.pi * share)))
        else:
            expected.append(first + (last - first) * share)
    found = rates("one_cycle", total, rise=rise, anneal=anneal)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_goes_through_any_number_of_steps(total):
    found = rates("one_cycle", total)
    assert np.isfinite(found).all() and found.max() <= 2.0 and found[0] == pytest.approx(2.0)


@pytest.mark.parametrize("total", [1, 3, 100, 1757])
def test_the_triangle_is_that_of_airbench(total):
    """`triangle(steps, start, end, peak)` of the code of Jordan 2024."""
    found = rates("triangle", total, rise=0.23, start=0.2, final=0.07)
    top = int(0.23 * total)
    ends = ([0, top, total], [0.2, 1, 0.07]) if top else ([0, total], [1, 0.07])
    np.testing.assert_allclose(found, 2 * np.interp(np.arange(total), *ends), rtol=1e-9)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("efficientnet_b0_imagenet", {"initial": 1.0}),
        ("efficientnet_lite0_imagenet", {"initial": 1.0}),
        ("efficientnet_v2_b0_imagenet", {"initial": 1.0}),
        ("fast94_cifar10", {"velocity": "gradients"}),  # PyTorch
        ("mobilenet_v1_imagenet", {"velocity": "steps"}),  # MXNet
        ("resnet50_imagenet", {"velocity": "gradients"}),  # equation 9 of Goyal et al. 2017
        ("wide_resnet28_10_cifar10", {"velocity": "gradients"}),  # Torch 7
    ],
)
def test_recipes_do_as_the_code_that_they_name(recipe, options):
    found = load_recipe(RECIPES / f"{recipe}.yaml").optimizer.options()
    assert options.items() <= found.items()


KEPT = {path.name.partition(".")[0] for path in (RECIPES / "results").iterdir()}


@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in KEPT)
)
def test_recipes_that_name_pytorch_sum_gradients(recipe):
    """Those with kept results have what the results were measured with."""
    path = RECIPES / f"{recipe}.yaml"
    text, found = path.read_text(), load_recipe(path)
    about = f"{text.partition('name:')[0]} {found.target.source if found.target else ''}"
    options = found.optimizer.options()
    if re.search("torch|timm|bearpaw", about.casefold()) and "velocity" in options:
        assert options["velocity"] == "gradients"
