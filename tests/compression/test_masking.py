"""Masks in training: when they change, and that every kernel and average obeys them."""

import math

import numpy as np
import pytest
from conftest import RECIPES

from cnnbench import load_recipe
from cnnbench.backend.lazy import tf
from cnnbench.compression import build_stage
from cnnbench.compression.masking import Masking
from cnnbench.compression.prune import prunable, sparsity_at
from cnnbench.compression.stages import Pruning
from cnnbench.models.build import build_model
from cnnbench.registry.kinds import COMPRESSIONS, MODELS, min_size
from cnnbench.training.compression import masking as training_masks


def pruning(**options):
    usual = {"pattern": "unstructured", "scope": "layer", "begin_at": 0.0, "end_at": 0.75}
    return Pruning(**{"sparsity": 0.8, "every": 10} | usual | options)


@pytest.fixture(scope="module")
def built():
    models = [build_model("resnet8", (16, 16, 3), 10) for _ in range(2)]
    return [(model, model.get_weights()) for model in models]


@pytest.fixture
def models(built):
    for model, weights in built:
        model.set_weights(weights)
    return [model for model, _ in built]


def test_masks_change_every_so_many_steps_and_at_the_end(models):
    stage = pruning(begin_at=0.2, end_at=0.75, every=50)
    masking = Masking(models[0], None, stage, 0.1, 1000)
    asked = {step + 1: masking.sparsity_after(step) for step in range(1000)}
    changes = {step: value for step, value in asked.items() if not math.isnan(value)}
    assert list(changes) == list(range(200, 751, 50))
    # Zhu & Gupta 2017, equation 1, at step 400 of 200 to 750.
    assert changes[400] == pytest.approx(0.8 - 0.7 * (1 - 200 / 550) ** 3)
    assert changes[200] == pytest.approx(0.1) and changes[750] == pytest.approx(0.8)
    assert [masking.is_settled(step) for step in (749, 750, 1000)] == [False, True, True]


def test_masks_change_gradually_in_a_short_stage_too(models):
    masking = Masking(models[0], None, pruning(every=50), 0.0, 40)
    asked = [masking.sparsity_after(step) for step in range(40)]
    changes = [value for value in asked if not math.isnan(value)]
    assert len(changes) == 10 and changes == sorted(changes) and changes[-1] == 0.8


@pytest.mark.parametrize("steps", [1, 3, 11])
def test_masks_change_however_early_the_end_is(models, steps):
    masking = Masking(models[0], None, pruning(end_at=0.04), 0.0, steps)
    assert not masking.is_settled(0) and masking.is_settled(1)
    assert masking.sparsity_after(0) == 0.8


def test_without_a_stage_zeros_stay(models):
    model, _ = models
    first = prunable(model)[0]
    first.assign(first * (np.arange(first.shape[-1]) % 2))
    masking = Masking(model, None, None, 0.0, 100)
    masking.initialize()
    assert all(math.isnan(masking.sparsity_after(step)) for step in range(100))
    assert masking.is_settled(0)
    first.assign_add(tf.ones(first.shape))
    masking.obey(tf.constant(math.nan))
    assert not np.array(first)[..., ::2].any() and np.array(first)[..., 1::2].all()


@pytest.mark.parametrize(("pattern", "share"), [("unstructured", 0.7), ("2:4", 0.5)])
def test_weights_and_their_averages_obey(models, pattern, share):
    model, averaged = models
    for kernel in (*prunable(model), *prunable(averaged)):
        kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    masking = Masking(model, averaged, pruning(sparsity=share, pattern=pattern), 0.0, 100)
    masking.initialize()
    tf.function(masking.obey)(tf.constant(share))
    for kernel, average in zip(prunable(model), prunable(averaged), strict=True):
        zeros = np.array(kernel) == 0
        assert zeros.mean() == pytest.approx(share, abs=1 / zeros.size)
        assert np.array_equal(zeros, np.array(average) == 0)


def masks_of(model, stages):
    """The masks of the last of these stages, when it begins."""
    specs = [COMPRESSIONS.spec(name, **options) for name, options in stages]
    recipe = load_recipe(RECIPES / "resnet8_cifar10.yaml").model_copy(update={"compress": specs})
    records = []
    for spec in specs:
        _, record = build_stage(spec).begin(model)
        records.append({"stage": spec.model_dump(), **record})
    masking = training_masks(recipe, records, model, None, 100)
    masking.initialize()
    return masking


def share_of_zeros(model):
    kernels = [np.array(kernel) for kernel in prunable(model)]
    return sum(np.sum(kernel == 0) for kernel in kernels) / sum(kernel.size for kernel in kernels)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_of_the_initial_weights_are_not_pruned_for_good(scope):
    model = build_model(MODELS.spec("airbench94", width=0.25), (16, 16, 3), 10)
    assert share_of_zeros(model) > 0.5  # identities
    masking = masks_of(model, [("prune", {"sparsity": 0.5, "scope": scope})])
    assert masking.sparsity_after(6) == sparsity_at(7, 0, 75, 0.5)
    for kernel in prunable(model):
        kernel.assign_add(np.random.default_rng(0).normal(size=kernel.shape))
    masking.obey(tf.constant(math.nan))
    assert share_of_zeros(model) == 0
    masking.obey(tf.constant(0.5))
    assert share_of_zeros(model) == pytest.approx(0.5, abs=1e-4)


def test_zeros_of_an_earlier_stage_stay(models):
    model, _ = models
    stages = [("prune", {"sparsity": 0.3}), ("prune", {"sparsity": 0.8})]
    for kernel in prunable(model):
        values = np.random.default_rng(0).normal(size=kernel.shape)
        kernel.assign(values * (np.arange(kernel.shape[-1]) % 2))
    places = [np.array(kernel) == 0 for kernel in prunable(model)]
    masking = masks_of(model, stages)
    expected = sparsity_at(7, 0, 75, 0.8, share_of_zeros(model))
    assert masking.sparsity_after(6) == pytest.approx(expected)
    for kernel in prunable(model):
        kernel.assign_add(tf.ones(kernel.shape))
    masking.obey(tf.constant(0.8))
    for kernel, zeros in zip(prunable(model), places, strict=True):
        assert not np.array(kernel)[zeros].any()
    assert share_of_zeros(model) == pytest.approx(0.8, abs=1e-3)


# The smallest network of each family; of these, some are quick to build.
QUICK = ("airbench", "lenet", "mobilenet_v2", "resnet")
PARAMS = {name: MODELS.get(name).facts["params"] for name in MODELS.names()}
SMALLEST = {
    MODELS.get(name).facts["family"]: name for name in sorted(PARAMS, key=PARAMS.get, reverse=True)
}


@pytest.mark.parametrize(
    "name",
    [
        name if family in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for family, name in SMALLEST.items()
    ],
)
def test_the_asked_sparsity_is_reached_in_every_family(name):
    size = max(min_size(MODELS.spec(name)), 32)
    model = build_model(name, (size, size, 3), 10)
    masking = masks_of(model, [("prune", {"sparsity": 0.5})])
    assert all(np.array(mask).all() for mask in masking.variables)
    masking.obey(tf.constant(0.0))
    for kernel in prunable(model):  # as a step would
        kernel.assign_add(np.random.default_rng(0).normal(size=kernel.shape))
    masking.obey(tf.constant(0.5))
    assert share_of_zeros(model) == pytest.approx(0.5, abs=1e-3)
