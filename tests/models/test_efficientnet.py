import pytest

from cnnbench.backend.lazy import keras
from cnnbench.models import efficientnet, efficientnet_v2
from cnnbench.models.pretrained.names.efficientnet import efficientnet_pytorch_name
from cnnbench.registry.kinds import MODELS


@pytest.fixture(autouse=True)
def clean_keras():
    yield
    keras.utils.clear_session()


@pytest.mark.parametrize(
    ("name", "filters", "depths", "stem", "head"),
    [
        ("b4", (24, 32, 56, 112, 160, 272, 448), (2, 4, 4, 6, 6, 8, 2), 48, 1792),
        ("b7", (32, 48, 80, 160, 224, 384, 640), (4, 7, 7, 10, 10, 13, 4), 64, 2560),
        ("lite4", (24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1), 32, 1280),
    ],
)
def test_scaled_widths_and_depths_are_those_of_the_published_networks(
    name, filters, depths, stem, head
):
    stages, stem_filters, head_filters = efficientnet.scaled(f"efficientnet_{name}")
    assert tuple(stage.filters for stage in stages) == filters
    assert tuple(stage.depth for stage in stages) == depths
    assert (stem_filters, head_filters) == (stem, head)


@pytest.mark.parametrize(
    ("name", "billion_macs"),
    [
        # Tan & Le 2019, table 2; from B4 on it counts a little less.
        ("efficientnet_b0", 0.39),
        ("efficientnet_b1", 0.70),
        ("efficientnet_b2", 1.0),
        ("efficientnet_b3", 1.8),
        ("efficientnet_b4", 4.2),
        ("efficientnet_b5", 9.9),
        ("efficientnet_b6", 19),
        ("efficientnet_b7", 37),
        # Tan & Le 2021, table 7.
        ("efficientnet_v2_s", 8.8),
        ("efficientnet_v2_m", 24),
    ],
)
def test_macs_are_near_the_published_ones(name, billion_macs):
    assert MODELS.get(name).facts["macs"] / 1e9 == pytest.approx(billion_macs, rel=0.05)


@pytest.mark.parametrize(
    ("stem", "sizes"),
    [("imagenet", (16, 16, 8, 4, 2, 2, 1, 1)), ("cifar", (32, 32, 32, 16, 8, 8, 4, 4))],
)
def test_stages_have_the_resolutions_of_table_1(stem, sizes):
    model = efficientnet.efficientnet("efficientnet_b0", (32, 32, 3), 10, stem=stem)
    names = [f"stage{i}_block{stage.depth}" for i, stage in enumerate(efficientnet.B0, start=1)]
    layers = ["stem_act", *(f"{name}_project_norm" for name in names)]
    assert tuple(model.get_layer(layer).output.shape[1] for layer in layers) == sizes


def test_only_blocks_with_a_skip_drop_paths_at_rates_that_rise_linearly():
    model = efficientnet.efficientnet("efficientnet_b0", (32, 32, 3), 10, drop_path_rate=0.16)
    rates = {layer.name: layer.rate for layer in model.layers if layer.name.endswith("_drop")}
    # Of 16 blocks, the first of each stage has no skip.
    indices = (2, 4, 6, 7, 9, 10, 12, 13, 14)
    assert list(rates.values()) == pytest.approx([0.16 * i / 16 for i in indices])


def test_lite_has_neither_squeeze_and_excite_nor_swish():
    model = MODELS.build(MODELS.spec("efficientnet_lite0"), (32, 32, 3), 10)
    assert not [layer.name for layer in model.layers if "_se_" in layer.name]
    activations = {
        layer.activation.__name__ for layer in model.layers if layer.name.endswith("_act")
    }
    assert activations == {"relu6"}


def test_v2_rounds_to_the_nearest_width_and_fuses_the_first_three_stages():
    model = efficientnet_v2.efficientnet_v2("efficientnet_v2_b3", (32, 32, 3), 10)
    filters = [model.get_layer(f"stage{s}_block1_project").filters for s in range(1, 7)]
    assert filters == [16, 40, 56, 112, 136, 232]
    depthwise = {layer.name[:6] for layer in model.layers if layer.name.endswith("_depthwise")}
    assert depthwise == {"stage4", "stage5", "stage6"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("stem_norm/gamma", "_bn0.weight"),
        ("stage1_block1_depthwise/kernel", "_blocks.0._depthwise_conv.weight"),
        ("stage3_block2_expand_norm/moving_variance", "_blocks.4._bn0.running_var"),
        ("stage7_block1_project/kernel", "_blocks.15._project_conv.weight"),
        ("logits/bias", "_fc.bias"),
    ],
)
def test_efficientnet_pytorch_counts_blocks_through_all_stages(path, name):
    assert efficientnet_pytorch_name("efficientnet_lite0", path) == name
