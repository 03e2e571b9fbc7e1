"""Magnitude pruning, against the papers' formulas and brute force."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.backend.lazy import keras
from cnnbench.compression import prune
from cnnbench.models.build import build_model

SHAPES = [(3, 3, 8, 6), (1, 1, 6, 10), (20, 5)]


def kernels_of(*arrays):
    return [keras.Variable(array, name=f"kernel{i}") for i, array in enumerate(arrays)]


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def zeros(mask):
    return int(np.sum(np.asarray(mask) == 0))


def test_the_schedule_is_that_of_zhu_and_gupta():
    begin, end, final, initial = 100, 500, 0.9, 0.2

    def at(step):
        return prune.sparsity_at(step, begin, end, final, initial)

    assert at(0) == at(99) == initial == pytest.approx(at(begin))
    assert at(end) == at(501) == at(10**9) == final
    for step in range(begin, end + 1, 25):
        expected = final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3
        assert at(step) == pytest.approx(expected, abs=1e-12)
    # Half of the way is seven eighths of the sparsity.
    assert prune.sparsity_at(300, begin, end, 0.8) == pytest.approx(0.7)
    assert (
        prune.sparsity_at(99, 100, 100, 0.8) == 0 and prune.sparsity_at(100, 100, 100, 0.8) == 0.8
    )


def test_what_is_pruned():
    model = build_model("mobilenet_v1_025", (32, 32, 3), 10)
    paths = [kernel.path for kernel in prune.prunable(model)]
    assert len(paths) == 14
    assert paths[0] == "stage1_block1_pointwise/kernel" and paths[-1] == "logits/kernel"
    assert not any("depthwise" in path or "stem" in path for path in paths)
    model.get_layer("stage1_block1_pointwise").trainable = False
    assert len(prune.prunable(model)) == 13


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.55, 0.9, 0.999, 1])
def test_each_layer_loses_exactly_its_smallest_weights(sparsity):
    kernels = kernels_of(*drawn(*SHAPES))
    masks = prune.masks_like(kernels)
    prune.update(kernels, masks, sparsity, "layer")
    for kernel, mask in zip(kernels, masks, strict=True):
        magnitudes, kept = np.abs(kernel.numpy()), mask.numpy().astype(bool)
        assert zeros(mask) == round(sparsity * magnitudes.size)
        assert not kept.any() or magnitudes[kept].min() >= magnitudes[~kept].max(initial=0)


def test_the_global_scope_compares_the_weights_of_all_kernels():
    kernels = kernels_of(
        np.array([[1.0, -2.0], [3.0, -4.0]], "float32"),
        np.array([[0.1, -0.2, 0.3], [5.0, -6.0, 0.4]], "float32"),
    )
    masks = prune.masks_like(kernels)
    prune.update(kernels, masks, 0.5, "global")
    assert np.array_equal(masks[0], [[0, 1], [1, 1]])
    assert np.array_equal(masks[1], [[0, 0, 0], [1, 1, 0]])
    masks = prune.masks_like(kernels)
    prune.update(kernels, masks, 0.5, "layer")
    assert np.array_equal(masks[0], [[0, 0], [1, 1]])
    assert np.array_equal(masks[1], [[0, 0, 0], [1, 1, 1]])


def test_of_equal_weights_the_first_are_masked():
    kernels = kernels_of(np.array([[2.0, -1, 1], [1, -1, 3]], "float32"))
    masks = prune.masks_like(kernels)
    prune.update(kernels, masks, 0.5, "layer")
    assert np.array_equal(masks[0], [[1, 0, 0], [0, 1, 1]])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("xla", [False, True])
def test_a_masked_weight_stays_masked_and_zero_in_training(scope, xla):
    kernels = kernels_of(*drawn(*SHAPES))
    bias = keras.Variable(np.ones(3, "float32"), name="bias")
    masks = prune.masks_like(kernels)
    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    variables = [bias, *kernels]
    optimizer.build(variables)

    @tf.function(jit_compile=xla)
    def step(sparsity, gradients):
        prune.update(kernels, masks, sparsity, scope)
        optimizer.apply(gradients, variables)
        prune.apply(kernels, masks)

    before = [mask.numpy() for mask in masks]
    for i, sparsity in enumerate((0.3, 0.5, 0.5, 0.8)):
        gradients = [tf.ones(3), *map(tf.constant, drawn(*SHAPES, seed=i + 1))]
        step(tf.constant(sparsity, tf.float64), gradients)
        for kernel, mask, was in zip(kernels, masks, before, strict=True):
            gone = mask.numpy() == 0
            assert np.all(gone[was == 0])
            assert not np.any(kernel.numpy()[gone]) and np.all(kernel.numpy()[~gone])
        before = [mask.numpy() for mask in masks]
        sizes = [mask.size for mask in before]
        assert sum(map(zeros, before)) == (
            round(sparsity * sum(sizes))
            if scope == "global"
            else sum(round(sparsity * size) for size in sizes)
        )


def test_a_masked_weight_does_not_come_back_though_an_optimizer_moved_it():
    kernels = kernels_of(np.array([[1.0, 2.0], [3.0, 4.0]], "float32"))
    masks = prune.masks_like(kernels)
    prune.update(kernels, masks, 0.25, "layer")
    kernels[0].assign([[9.0, 2.0], [0.0, 4.0]])
    prune.update(kernels, masks, 0.5, "layer")
    assert np.array_equal(masks[0], [[0, 1], [0, 1]])
    prune.update(kernels, masks, 0.0, "layer")
    assert np.array_equal(masks[0], [[0, 1], [0, 1]])


@pytest.mark.parametrize("scope", ["layer", "global", "2:4"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.9])
def test_what_was_pruned_before_stays_so(scope, sparsity):
    kernels = kernels_of(*drawn((3, 3, 8, 6), (4, 10)))
    masks = prune.masks_like(kernels)
    # The first kernel is sparser than the mean, the second less so.
    for mask, share in zip(masks, (0.8, 0.4), strict=True):
        mask.assign(np.random.default_rng(1).random(mask.shape) > share)
    before = [mask.numpy() for mask in masks]
    if scope == "2:4":
        prune.update_two_of_four(kernels, masks)
    else:
        prune.update(kernels, masks, sparsity, scope)
    for mask, was in zip(masks, before, strict=True):
        assert not mask.numpy()[was == 0].any()
        if scope == "2:4":
            fours = mask.numpy().reshape(-1, 4, mask.shape[-1])
            assert fours.sum(1).max() <= 2
        elif scope == "layer":
            assert zeros(mask) == max(zeros(was), round(sparsity * was.size))
    if scope == "global":
        count = sum(was.size for was in before)
        assert sum(map(zeros, masks)) == max(sum(map(zeros, before)), round(sparsity * count))


@pytest.mark.parametrize("shape", [(3, 3, 8, 5), (1, 1, 4, 1), (12, 7)])
def test_two_of_four_by_brute_force(shape):
    kernels = kernels_of(*drawn(shape))
    masks = prune.masks_like(kernels)
    prune.update_two_of_four(kernels, masks)
    magnitudes, mask = np.abs(kernels[0].numpy()), masks[0].numpy()
    for place in itertools.product(*(range(n) for n in shape[:-2])):
        for start, filter_ in itertools.product(range(0, shape[-2], 4), range(shape[-1])):
            four = magnitudes[(*place, slice(start, start + 4), filter_)]
            best = max(itertools.combinations(range(4), 2), key=lambda pair: four[list(pair)].sum())
            kept = mask[(*place, slice(start, start + 4), filter_)]
            assert tuple(np.flatnonzero(kept)) == best


def test_two_of_four_leaves_other_channels_whole_and_keeps_the_first_of_equals():
    odd, equal = drawn((3, 3, 6, 4))[0], np.ones((4, 2), "float32")
    kernels = kernels_of(odd, equal)
    masks = prune.masks_like(kernels)
    prune.update_two_of_four(kernels, masks)
    assert np.all(masks[0].numpy() == 1)
    assert np.array_equal(masks[1], [[1, 1], [1, 1], [0, 0], [0, 0]])


def test_the_sparsity_of_a_network_is_counted():
    model = build_model("resnet8", (16, 16, 3), 10)
    kernels = prune.prunable(model)
    masks = prune.masks_like(kernels)
    assert len({mask.path for mask in masks}) == len(masks) == 7
    prune.update(kernels, masks, 0.75, "layer")
    assert prune.sparsity_of(model)[0] == 0
    prune.apply(kernels, masks)
    whole, each = prune.sparsity_of(model)
    assert list(each) == [kernel.path for kernel in kernels]
    assert list(each.values()) == [0.75] * 7 and whole == 0.75
