"""Masks in training: when they change, and that every kernel and average obeys them."""

import math

import numpy as np
import pytest

from cnnbench.backend.lazy import tf
from cnnbench.compression.masking import Masking
from cnnbench.compression.prune import prunable
from cnnbench.compression.stages import Pruning
from cnnbench.models.build import build_model


def pruning(**options):
    usual = {"pattern": "unstructured", "scope": "layer", "begin_at": 0.0, "end_at": 0.75}
    return Pruning(**{"sparsity": 0.8, "every": 10} | usual | options)


@pytest.fixture(scope="module")
def models():
    return [build_model("resnet8", (16, 16, 3), 10) for _ in range(2)]


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
