"""The preprocessing of published weights: as their library has it, taken by recipes, told."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from cnnbench.backend.lazy import keras
from cnnbench.data.preprocess import Preprocess
from cnnbench.errors import RecipeError
from cnnbench.models.pretrained import presets
from cnnbench.models.pretrained.sources import published_networks
from cnnbench.recipe.load import load_recipe
from cnnbench.recipe.weights import notes

RECIPE = """
name: from_weights
model: {{name: {model}, weights: {weights}}}
data: {{name: synthetic, shape: [32, 32, 3], image_size: 32{data}}}
optimizer: {{name: sgd, lr: 0.1}}
train: {{epochs: 1}}
"""
MODULES = {
    "densenet121": "densenet", "mobilenet_v1": "mobilenet",
    "mobilenet_v2": "mobilenet_v2", "nasnet_mobile": "nasnet", "nasnet_large": "nasnet",
    "resnet50": "resnet", "resnet101": "resnet", "resnet152": "resnet",
    "resnet50v2": "resnet_v2", "resnet101v2": "resnet_v2", "vgg16": "vgg16", "vgg19": "vgg19",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    """A function that writes a recipe and loads it."""

    def load(model, weights, data="", *settings):
        path = tmp_path / "r.yaml"
        path.write_text(RECIPE.format(model=model, weights=weights, data=data))
        return load_recipe(path, settings)

    return load


def prepare_of(model, library="keras"):
    (source,) = (source for source in published_networks(model) if source.publisher == library)
    prepared = source.preprocessing
    return Preprocess(prepared.color, prepared.mean, prepared.std)


@pytest.mark.parametrize("model", MODULES)
def test_pixels_are_prepared_as_keras_applications_does(model, random):
    module = getattr(keras.applications, MODULES[model])
    pixels = random.integers(0, 256, (2, 8, 8, 3), np.uint8)
    theirs = module.preprocess_input(pixels.astype(np.float32))
    assert np.abs(prepare_of(model)(pixels) - theirs).max() < 1e-4


@pytest.mark.parametrize(("model", "reference"), [
    ("mobilenet_v3_small", "MobileNetV3Small"),
    pytest.param("efficientnet_v2_b0", "EfficientNetV2B0", marks=pytest.mark.slow),
    pytest.param("efficientnet_v2_s", "EfficientNetV2S", marks=pytest.mark.slow),
])  # fmt: skip
def test_pixels_are_prepared_as_inside_the_networks_of_keras(model, reference, random):
    build = getattr(keras.applications, reference)
    net = build(weights=None, input_shape=(32, 32, 3), classes=2, include_preprocessing=True)
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    *_, last = (layer for layer in net.layers[:4] if isinstance(layer, kinds))
    pixels = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    theirs = keras.Model(net.input, last.output)(pixels.astype(np.float32))
    assert np.abs(prepare_of(model)(pixels) - theirs).max() < 1e-4


def test_a_recipe_takes_the_preprocessing_of_its_weights(recipe):
    data = recipe("resnet50", "resnet50.h5", "", "model.stride=first").data
    assert data.color == "bgr" and np.allclose(data.std, 1 / 255)
    assert np.allclose(np.multiply(data.mean, 255), [103.939, 116.779, 123.68])
    data = recipe("mobilenet_v2", "mobilenet_v2.keras").data
    assert (data.color, data.mean, data.std) == ("rgb", [0.5] * 3, [0.5] * 3)
    data = recipe("resnet18", "resnet18.a1_in1k").data
    assert (data.resize_short, data.interpolation) == (33, "bicubic")  # 32 / 0.95, cut off


def test_timms_config_is_taken(recipe, tmp_path):
    save_file({"fc.bias": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_mode": "squash"}
    config = {"architecture": "resnet18", "pretrained_cfg": config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = recipe("resnet18", tmp_path / "model.safetensors")
    assert (found.data.mean, found.data.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    told = notes(found)
    assert "timm:resnet18" in told[0] and "config.json" in told[0]
    assert "crop_mode squash" in told[1]


def test_what_the_recipe_sets_holds_and_is_told(recipe):
    found = recipe("mobilenet_v2", "mobilenet_v2.keras", ", mean: [0.4, 0.4, 0.4]")
    assert found.data.color == "rgb"
    assert found.data.mean == [0.4] * 3 and found.data.std == [0.5] * 3
    _, told = notes(found)
    assert "r.yaml:4" in told and "data.mean is [0.4, 0.4, 0.4]" in told and "[0.5, 0" in told
    # A mean in another color space would be no mean.
    found = recipe("resnet50", "resnet50.h5", ", color: rgb", "model.stride=first")
    assert (found.data.color, found.data.mean) == ("rgb", None)
    assert any("data.color is rgb" in note and "bgr" in note for note in notes(found))
    assert notes(recipe("resnet18", "null")) == []


@pytest.mark.parametrize(("given", "stored"), [
    ("mean: [0.4, 0.4, 0.4]", "rgb"), ("std: [0.2, 0.2, 0.2]", "rgb"),
    ("mean: [0.1]", "grey"),
])  # fmt: skip
def test_a_mean_of_another_color_than_the_weights_want_is_refused(recipe, given, stored):
    with pytest.raises(RecipeError, match=f"set data.color to {stored}") as caught:
        recipe("resnet50", "resnet50.h5", f", {given}", "model.stride=first")
    key, _, values = given.partition(": ")
    assert f"r.yaml:4: data.{key}: {values} is for {stored}, but the weights want bgr" in (
        str(caught.value)
    )


def test_the_mean_of_grey_data_is_no_mean_of_weights_for_rgb(recipe):
    settings = ("data={name: fashion_mnist, image_size: 32, mean: [0.1]}",)
    with pytest.raises(RecipeError, match=r"mean: \[0\.1\] is for grey, but .* rgb"):
        recipe("mobilenet_v2", "mobilenet_v2.keras", "", *settings)
    data = recipe(
        "mobilenet_v2", "mobilenet_v2.keras", "", "data={name: fashion_mnist, image_size: 32}"
    ).data
    assert (data.color, data.mean) == ("rgb", [0.5] * 3)


def test_what_weights_fill_in_is_checked(recipe, monkeypatch):
    grey = presets.Preprocessing((0.5, 0.5), (0.5, 0.5))
    preset = replace(presets.PRESETS["mobilenet_v2.keras"], preprocessing=grey)
    monkeypatch.setitem(presets.PRESETS, "mobilenet_v2.keras", preset)
    with pytest.raises(RecipeError, match=r"data\.mean: 2 values.*per channel: 3"):
        recipe("mobilenet_v2", "mobilenet_v2.keras")


def test_a_missing_file_says_nothing_yet(recipe, tmp_path):
    found = recipe("resnet18", tmp_path / "missing.safetensors")
    assert found.data.mean is None and notes(found) == []


def test_the_recipe_that_a_run_keeps_says_it_again(recipe):
    from cnnbench.recipe.load import parse_recipe

    found = recipe("mobilenet_v2", "mobilenet_v2.keras")
    assert parse_recipe(found.dump()) == found


@pytest.mark.parametrize(("model", "weights", "settings", "words"), [
    ("resnet18", "model.safetensors", (), r"r\.yaml:3: model\.weights: .* these have the same"),
    ("resnet18", "model.safetensors", ("model.weights_source=timm:resnet81",), "did you mean"),
    ("resnet50", "x.h5", (), r"r\.yaml:3: model\.stride: 'second' does not match .*x\.h5"),
    ("resnet18", "null", ("model.weights_source=timm:resnet18",), "set without model.weights"),
])  # fmt: skip
def test_a_doubtful_source_is_refused_with_its_line(
    recipe, tmp_path, model, weights, settings, words
):
    save_file({"fc.bias": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    weights = weights if weights == "null" else tmp_path / weights
    with pytest.raises(RecipeError, match=words):
        recipe(model, weights, "", *settings)


def test_every_preset_is_prepared_by_what_its_network_is():
    for name, preset in presets.PRESETS.items():
        prepared = preset.preprocessing
        (source,) = (x for x in published_networks(preset.model) if x.name == preset.source)
        assert source.differs is None and source.options == {}, name
        same = source.preprocessing
        assert (prepared.mean, prepared.std, prepared.color) == (same.mean, same.std, same.color)
