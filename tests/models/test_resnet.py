"""ResNet, ResNetV2, Wide ResNet and ResNeXt against their papers and keras.applications."""

import re

import numpy as np
import pytest

from cnnbench.backend.lazy import keras
from cnnbench.models import (
    resnet,
    wide_resnet,  # noqa: F401 - registers
)
from cnnbench.models.build import build_model
from cnnbench.models.pretrained.names import resnet as resnet_names
from cnnbench.models.pretrained.names import resnet_v2 as resnet_v2_names
from cnnbench.registry.kinds import MODELS


def build(name, size=32, **options):
    return build_model(MODELS.spec(name, **options), (size, size, 3), 10)


def randomise(model, rng):
    """Draws batch-norm statistics and biases too, which begin as zeros and ones."""
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.2, variable.shape))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if int(name[6:]) > 60 else name
        for name in (*resnet.BASIC, *resnet.BOTTLENECK, *resnet.CIFAR)
    ],
)
@pytest.mark.usefixtures("structure_only")
def test_depth_is_the_number_in_the_name(name):
    layers = build(name).layers
    weighted = [x for x in layers if isinstance(x, keras.layers.Conv2D | keras.layers.Dense)]
    assert len([x for x in weighted if not x.name.endswith("_shortcut")]) == int(name[6:])


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 0.27),
        ("resnet56", 0.85),
        ("wide_resnet40_2", 2.2),
        ("wide_resnet16_8", 11.0),
        ("wide_resnet28_10", 36.5),
        ("resnext29_8x64d", 34.4),
    ],
)
def test_params_are_those_of_the_papers(name, millions):
    digits = len(str(millions).partition(".")[2])
    assert round(MODELS.get(name).facts["params"] / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("resnet50", 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        # The stride is at the end of a stage.
        ("resnet50v2", 224, [(28, 256), (14, 512), (7, 1024), (7, 2048)]),
        ("resnet50", 225, [(57, 256), (29, 512), (15, 1024), (8, 2048)]),
        ("wide_resnet16_8", 32, [(32, 128), (16, 256), (8, 512)]),
        ("resnext29_8x64d", 32, [(32, 256), (16, 512), (8, 1024)]),
    ],
)
@pytest.mark.usefixtures("structure_only")
def test_stages_have_the_sizes_of_the_tables(name, size, sizes):
    last = {}
    for layer in build(name, size).layers:
        if match := re.fullmatch(r"stage(\d)_block\d+_add", layer.name):
            last[match[1]] = layer.output.shape[2:]
    assert list(last.values()) == sizes


@pytest.mark.parametrize(
    ("names", "name", "options"),
    [
        (resnet_names, "resnet50", {"stride": "first"}),
        pytest.param(resnet_v2_names, "resnet50v2", {}, marks=pytest.mark.slow),
    ],
)
def test_equals_keras_applications(names, name, options):
    rng = np.random.default_rng(0)
    reference = getattr(keras.applications, names.KERAS_MODELS[name])(
        weights=None, classes=10, classifier_activation=None, input_shape=(64, 64, 3)
    )
    randomise(reference, rng)
    published = {v.path: v.numpy() for v in reference.variables}
    model = build(name, 64, **options)
    for variable in model.variables:
        weight = published.pop(names.keras_name(name, variable.path))
        folded = name == "resnet50" and names.keras_folds(name, variable.path)
        variable.assign(weight - published.pop(folded) if folded else weight)
    assert not published
    images = rng.normal(size=(4, 64, 64, 3)).astype(np.float32)
    for training in (False, True):
        expected = np.array(reference(images, training=training))
        difference = np.abs(expected - model(images, training=training)).max()
        assert difference < 1e-4 * np.abs(expected).max()


def test_keras_folds_only_moving_means():
    assert resnet_names.keras_folds("resnet50", "stem_norm/moving_mean") == "conv1_conv/bias"
    path = "stage1_block1_shortcut_norm/moving_mean"
    assert resnet_names.keras_folds("resnet50", path) == "conv2_block1_0_conv/bias"
    assert resnet_names.keras_folds("resnet50", "stem_norm/beta") is None


@pytest.mark.parametrize(("stride", "strided"), [("first", "conv1"), ("second", "conv2")])
@pytest.mark.usefixtures("structure_only")
def test_stride_of_a_bottleneck(stride, strided):
    model = build("resnet50", stride=stride)
    halving = {layer.name for layer in model.layers if getattr(layer, "strides", 1) == (2, 2)}
    assert f"stage2_block1_{strided}" in halving
    assert sum(name.startswith("stage2") for name in halving) == 2  # and the shortcut


@pytest.mark.usefixtures("structure_only")
def test_deep_stem_averages_before_it_projects():
    layers = {layer.name: layer for layer in build("resnet50", stem="deep").layers}
    assert [layers[f"stem_conv{i}"].filters for i in (1, 2, 3)] == [32, 32, 64]
    assert isinstance(layers["stage2_block1_pool"], keras.layers.AveragePooling2D)
    assert layers["stage2_block1_pool_shortcut"].strides == (1, 1)
    assert "stage1_block1_pool" not in layers  # nothing to halve


def test_identity_shortcut_pads_channels_on_both_sides():
    images = keras.Input((4, 4, 2))
    shortcut = keras.Model(images, resnet.identity_shortcut(images, 5, 2, "block"))
    pixels = np.arange(1, 33, dtype=np.float32).reshape(1, 4, 4, 2)
    expected = np.pad(pixels[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 2)))
    np.testing.assert_array_equal(shortcut(pixels), expected)


@pytest.mark.usefixtures("structure_only")
def test_squeeze_and_excitation_narrows_by_the_ratio():
    model = build("resnet50", se_ratio=1 / 16)
    assert model.get_layer("stage4_block1_se_reduce").filters == 2048 // 16
    assert model.count_params() - build("resnet50").count_params() == 2_530_992


@pytest.mark.parametrize("name", ["resnet20", "resnet50v2", "wide_resnet40_2"])
@pytest.mark.usefixtures("structure_only")
def test_drop_path_rates_grow_linearly(name):
    model = build(name, drop_path_rate=0.4)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_drop_path")]
    np.testing.assert_allclose(rates, 0.4 * np.arange(1, len(rates) + 1) / len(rates))


@pytest.mark.usefixtures("structure_only")
def test_block_dropout_is_between_the_convolutions():
    model = build("wide_resnet16_8", block_dropout=0.3)
    dropout = model.get_layer("stage1_block1_dropout")
    assert dropout.rate == 0.3
    assert dropout.input is model.get_layer("stage1_block1_act2").output


@pytest.mark.usefixtures("structure_only")
def test_groups_and_widths_of_resnext():
    model = build("resnext29_8x64d")
    convs = [model.get_layer(f"stage{stage}_block1_conv2") for stage in (1, 2, 3)]
    assert [(conv.groups, conv.filters) for conv in convs] == [(8, 512), (8, 1024), (8, 2048)]
