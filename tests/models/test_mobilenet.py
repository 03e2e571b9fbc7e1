import pytest

from cnnbench.backend.lazy import keras
from cnnbench.models import mobilenet_v1, mobilenet_v2, mobilenet_v3
from cnnbench.models.complexity import count_params
from cnnbench.registry.kinds import MODELS


@pytest.mark.parametrize(
    ("name", "million_params", "million_macs"),
    [
        ("mobilenet_v1", 4.2, 569),
        ("mobilenet_v1_075", 2.6, 325),
        ("mobilenet_v1_050", 1.3, 149),
        ("mobilenet_v1_025", 0.5, 41),
    ],
)
def test_v1_costs_what_table_6_says(name, million_params, million_macs):
    facts = MODELS.get(name).facts
    assert round(facts["params"] / 1e6, 1) == million_params
    assert round(facts["macs"] / 1e6) == million_macs


def test_v1_stages_have_the_sizes_of_table_1():
    model = mobilenet_v1.mobilenet_v1("mobilenet_v1", (224, 224, 3), 1000)
    last = {1: 1, 2: 2, 3: 2, 4: 6, 5: 2}
    sizes = [
        model.get_layer(f"stage{stage}_block{block}_pointwise").output.shape[1:]
        for stage, block in last.items()
    ]
    assert sizes == [(112, 112, 64), (56, 56, 128), (28, 28, 256), (14, 14, 512), (7, 7, 1024)]


@pytest.mark.usefixtures("structure_only")
def test_v2_has_residuals_inside_stages_only():
    model = mobilenet_v2.mobilenet_v2("mobilenet_v2", (224, 224, 3), 1000)
    added = {layer.name for layer in model.layers if layer.name.endswith("_add")}
    inside = {
        f"stage{stage}_block{block}_add"
        for stage, (_, _, depth, _) in enumerate(mobilenet_v2.STAGES, start=1)
        for block in range(2, depth + 1)
    }
    assert added == inside


@pytest.mark.parametrize(
    ("name", "params"),
    [("mobilenet_v3_large", 3_993_528), ("mobilenet_v3_small", 2_041_872)],
)
@pytest.mark.usefixtures("structure_only")
def test_v3_at_alpha_075_has_the_params_of_the_published_checkpoints(name, params):
    model = mobilenet_v3.mobilenet_v3(name, (32, 32, 3), 1000, alpha=0.75)
    assert count_params(model) == params


@pytest.mark.parametrize("name", mobilenet_v3.VARIANTS)
@pytest.mark.usefixtures("structure_only")
def test_v3_blocks_have_the_widths_of_the_table(name):
    model = mobilenet_v3.mobilenet_v3(name, (224, 224, 3), 1000)
    layers = {layer.name: layer for layer in model.layers}
    for stage, rows in enumerate(mobilenet_v3.stages(name), start=1):
        for i, (kernel, expanded, filters, squeezed, nl, strides) in enumerate(rows, start=1):
            block = f"stage{stage}_block{i}"
            depthwise = layers[f"{block}_depthwise"]
            assert (depthwise.kernel_size[0], depthwise.strides[0]) == (kernel, strides)
            assert depthwise.output.shape[-1] == expanded
            assert layers[f"{block}_project"].output.shape[-1] == filters
            assert (f"{block}_se_reduce" in layers) == squeezed
            activation = keras.activations.get({"RE": "relu", "HS": "hard_swish"}[nl])
            assert layers[f"{block}_depthwise_act"].activation is activation


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v1", 2),
        ("mobilenet_v2", 4),
        ("mobilenet_v3_large", 4),
        ("mobilenet_v3_small", 4),
    ],
)
@pytest.mark.usefixtures("structure_only")
def test_cifar_stem_keeps_the_resolution(name, size):
    model = MODELS.build(MODELS.spec(name, stem="cifar"), (32, 32, 3), 10)
    assert model.get_layer("stem_conv").output.shape[1] == 32
    assert model.get_layer("head_pool").input.shape[1:3] == (size, size)
