"""Masks in training: when they change, and that every kernel and average obeys them."""

import math

import numpy as np
import pytest

from cnnbench.compress.masking import Masking
from cnnbench.compress.prune import prunable
from cnnbench.compress.stages import Pruning
from cnnbench.lazy import tf
from cnnbench.models import build_model


def pruning(**options):
    usual = {"pattern": "unstructured", "scope": "layer", "begin_at": 0.0, "end_at": 0.75}
    return Pruning(**{"sparsity": 0.8, "every": 10} | usual | options)


@pytest.fixture(scope="module")
def models():
    return [build_model("resnet8", (16, 16, 3), 10) for _ in range(2)]


def test_masks_change_every_so_many_steps_and_at_the_end(models):
    masking = Masking(models[0], None, pruning(begin_at=0.2, end_at=0.75), 0.1, 100)
    asked = {step + 1: masking.sparsity_after(step) for step in range(100)}
    changes = {step: value for step, value in asked.items() if not math.isnan(value)}
    assert list(changes) == [20, 30, 40, 50, 60, 70, 75]
    # Zhu & Gupta 2017, equation 1, at step 40 of 20 to 75.
    assert changes[40] == pytest.approx(0.8 - 0.7 * (1 - 20 / 55) ** 3)
    assert changes[20] == pytest.approx(0.1) and changes[75] == pytest.approx(0.8)
    assert [masking.is_settled(step) for step in (74, 75, 100)] == [False, True, True]


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
