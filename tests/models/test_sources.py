"""Of which published network a file is: told apart by what says so, refused where nothing does."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from cnnbench.errors import UsageError
from cnnbench.models.pretrained.sources import (
    SILENT,
    check_all_options,
    claims_of,
    has_published,
    identify,
    published_networks,
)
from cnnbench.registry.kinds import MODELS, model_spec

PYTORCH = {"padding": "symmetric", "epsilon": 1e-5}
ALL = [
    source for name in MODELS.names() if has_published(name) for source in published_networks(name)
]
# What the importer once took for ours: same names and shapes, another computation.
LOOK_ALIKES = {
    "efficientnet_b0": "timm:efficientnet_b0", "efficientnet_b3": "timm:efficientnet_b3",
    "efficientnet_lite0": "timm:efficientnet_lite0",
    "efficientnet_lite3": "timm:efficientnet_lite3",
    "efficientnet_v2_s": "timm:efficientnetv2_s", "efficientnet_v2_m": "timm:efficientnetv2_m",
    "mobilenet_v3_large": "timm:mobilenetv3_large_100",
    "mobilenet_v3_small": "timm:mobilenetv3_small_100",
    "resnet18": "timm:resnetblur18", "resnet50": "timm:resnetaa50",
}  # fmt: skip
HEADS = {"resnet": "fc.bias", "default": "classifier.bias"}
TIMM_CONFIG = {
    "architecture": "efficientnet_b0",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "ra_in1k", "input_size": [3, 224, 224], "interpolation": "bicubic",
        "crop_pct": 0.95, "crop_mode": "center", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    },
}  # fmt: skip


WHOLE = {"mean": [0.5] * 3, "std": [0.5] * 3}
HARMED = [
    WHOLE | {"std": [1, float("nan"), 1]}, WHOLE | {"mean": [10**400] * 3},
    WHOLE | {"mean": {"a": 1}}, WHOLE | {"crop_pct": 0}, WHOLE | {"crop_pct": [1]},
    WHOLE | {"mean": [0.5] * 4, "std": [0.5] * 4},
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """A function that writes a file with the name of a head, and what lies beside it."""

    def write(model, config=None, metadata=None):
        key = HEADS["resnet" if model.startswith("resnet") else "default"]
        path = tmp_path / "model.safetensors"
        save_file({key: np.zeros(2, np.float32)}, path, metadata)
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (tmp_path / "config.json").write_text(text)
        return path

    return write


def found(path, model, source=None, **options):
    """The identification of a file for a network of ours."""
    return identify(model_spec(model, weights_source=source, **options), path, claims_of(path))


@pytest.mark.parametrize(("model", "theirs"), LOOK_ALIKES.items())
def test_what_nothing_tells_apart_is_refused_and_named(file, model, theirs):
    with pytest.raises(UsageError, match="have the same names") as caught:
        found(file(model), model)
    assert theirs in str(caught.value) and "model.weights_source" in str(caught.value)
    assert caught.value.key == "model.weights"


def test_what_no_published_network_fits_is_refused(file):
    with pytest.raises(UsageError, match="no published resnet18 with these options") as caught:
        found(file("resnet18"), "resnet18", stem="cifar")
    assert caught.value.key == "model.weights" and "cnnbench list weights" in str(caught.value)
    save_file({"my_head.bias": np.zeros(2, np.float32)}, path := file("efficientnet_b0"))
    with pytest.raises(UsageError, match="no published efficientnet_b0"):
        found(path, "efficientnet_b0", **PYTORCH)


def test_the_only_one_that_fits_must_be_one_that_we_can_compute(file):
    with pytest.raises(UsageError, match=r"anti-aliasing.*: timm:seresnetaa50d"):
        found(file("resnet50"), "resnet50", stem="deep", se_ratio=1 / 16)


def test_weights_of_no_published_network_are_to_train_on_only(file):
    spec = model_spec("resnet20", weights=str(file("resnet20")))
    identification = identify(spec, file("resnet20"))
    assert identification.network is None and identification.preprocessing is None
    with pytest.raises(UsageError, match="nobody publishes weights") as caught:
        check_all_options(spec, identification)
    assert caught.value.key == "model.weights"


def test_a_file_of_no_network_with_another_computation_needs_no_word(file, tmp_path):
    identification = found(file("mobilenet"), "densenet121")
    assert identification.network.name == "torchvision:densenet121"
    assert found(tmp_path / "x.h5", "efficientnet_b0").network.name == "keras:EfficientNetB0"


@pytest.mark.parametrize("said", ["recipe", "config", "metadata"])
def test_each_kind_of_word_is_enough(file, said):
    name = "timm:efficientnet_b0"
    path = file(
        "efficientnet_b0",
        TIMM_CONFIG if said == "config" else None,
        {"weights_source": name} if said == "metadata" else None,
    )
    source = name if said == "recipe" else None
    assert found(path, "efficientnet_b0", source, **PYTORCH).network.name == name
    with pytest.raises(UsageError, match=r"model\.epsilon: 0\.001 does not match") as caught:
        found(path, "efficientnet_b0", source)
    assert "set model.epsilon to 1e-05 and model.padding to 'symmetric'" in str(caught.value)


def test_timms_preprocessing_is_that_of_its_config(file):
    prepared = found(file("x", TIMM_CONFIG), "efficientnet_b0", **PYTORCH).preprocessing
    assert prepared.mean == (0.1, 0.2, 0.3) and prepared.std == (0.4, 0.5, 0.6)
    assert (prepared.crop, prepared.interpolation) == (0.95, "bicubic")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "resnet34"}, r"says timm:resnet34, which is not resnet50"),
        ({"architecture": "resnetv2_50.a1h_in1k"}, "which is not resnet50"),
        ({"architecture": "resnetblur50"}, "computes differently .anti-aliasing"),
        ({"architecture": "resnet50", "model_args": {"aa_layer": "avg"}}, "model_args aa_layer"),
        ({"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5]}}, "is damaged"),
        ({"architecture": "resnet50", "pretrained_cfg": {"mean": [0] * 3, "std": [0] * 3}},
         "is damaged"),
        ({"architecture": "resnet50", "pretrained_cfg": 7}, "is damaged"),
        *(({"architecture": "resnet50", "pretrained_cfg": x}, "is damaged") for x in HARMED),
        *(({"architecture": "resnet50", "model_args": x}, "model_args is .*, not the arguments")
          for x in ([1, 2], [{}], 7, "aa_layer")),
    ],
)  # fmt: skip
def test_another_network_is_refused_by_its_name(file, changes, words):
    path = file("resnet50", TIMM_CONFIG | changes)
    with pytest.raises(UsageError, match=words):
        found(path, "resnet50")


@pytest.mark.parametrize("text", ["{", "\0", "[" * 100_000])
def test_a_damaged_config_is_named(file, text):
    path = file("resnet50", text)
    with pytest.raises(UsageError, match=r"config\.json: cannot read"):
        found(path, "resnet50")


@pytest.mark.parametrize("text", ["[]", '{"architectures": ["ResNetForImageClassification"]}'])
def test_the_config_of_another_library_says_nothing(file, text):
    with pytest.raises(UsageError, match="have the same names"):
        found(file("resnet50", text), "resnet50")


def test_a_config_beside_several_files_says_nothing(file):
    path = file("resnet50", TIMM_CONFIG | {"architecture": "resnet50"})
    assert found(path, "resnet50").network.name == "timm:resnet50"
    one = path.rename(path.with_name("one.safetensors"))
    assert found(one, "resnet50").network.name == "timm:resnet50"
    file("resnet50")
    with pytest.raises(UsageError, match="have the same names"):
        found(one, "resnet50")


def test_two_words_that_differ_are_refused(file):
    path = file("resnet50", TIMM_CONFIG | {"architecture": "resnet50"})
    assert found(path, "resnet50", "torchvision:resnet50").network.name == "torchvision:resnet50"
    with pytest.raises(UsageError, match=r"says timm:resnet50d, .*config\.json timm:resnet50"):
        found(path, "resnet50", "timm:resnet50d")


@pytest.mark.parametrize(("source", "words"), [
    ("timm:resnet5", "did you mean .*timm:resnet50"),
    ("keras:ResNet50", r"keras\.applications has \.h5 files"),
    ("timm:resnetaa50", "computes differently"),
])  # fmt: skip
def test_a_source_of_the_recipe_must_be_one(file, source, words):
    with pytest.raises(UsageError, match=words) as caught:
        found(file("resnet50"), "resnet50", source)
    assert caught.value.key == "model.weights_source"


def test_used_as_they_are_weights_allow_no_other_option(file):
    path = file("efficientnet_b0", TIMM_CONFIG)
    spec = model_spec("efficientnet_b0", stem="cifar", dropout=0.5, **PYTORCH)
    identification = identify(spec, path, claims_of(path))
    with pytest.raises(UsageError, match=r"model\.stem: 'cifar' does not match"):
        check_all_options(spec, identification)
    check_all_options(model_spec("efficientnet_b0", dropout=0.5, **PYTORCH), identification)


@pytest.mark.parametrize("source", ALL, ids=lambda source: source.name)
def test_a_source_has_options_of_its_network_and_a_whole_preprocessing(source):
    spec = model_spec(source.model, **source.options)
    assert source.options.keys() <= spec.options().keys()
    prepared = source.preprocessing
    assert len(prepared.mean) == len(prepared.std) == 3 and prepared.color in ("rgb", "bgr")
    assert re.fullmatch(r"(keras|torchvision|timm|efficientnet(_lite)?_pytorch):\w+", source.name)


@pytest.mark.usefixtures("structure_only")
def test_an_option_that_is_not_silent_shows_in_the_weights():
    from cnnbench.models.build import build_model

    def weights(**options):
        built = build_model(model_spec("resnet18", **options), (32, 32, 3), 2)
        return [(weight.path, tuple(weight.shape)) for weight in built.weights]

    options = {pair for source in ALL for pair in source.options.items() if pair[0] not in SILENT}
    assert options == {("stem", "deep"), ("se_ratio", 1 / 16)}
    plain = weights()
    assert all(weights(**{key: value}) != plain for key, value in options)
