import pytest

from cnnbench.lazy import keras
from cnnbench.models import nasnet
from cnnbench.parts import MODELS


@pytest.fixture(autouse=True)
def clean_keras():
    yield
    keras.utils.clear_session()


# The shapes after the stem, each reduction and each stage in the tests of the authors' code.
@pytest.mark.parametrize(
    ("name", "stem", "reductions", "stages"),
    [
        (
            "nasnet_mobile",
            (28, 28, 88),
            [(14, 14, 352), (7, 7, 704)],
            [(28, 28, 264), (14, 14, 528), (7, 7, 1056)],
        ),
        pytest.param(
            "nasnet_large",
            (42, 42, 336),
            [(21, 21, 1344), (11, 11, 2688)],
            [(42, 42, 1008), (21, 21, 2016), (11, 11, 4032)],
            marks=pytest.mark.slow,
        ),
        (
            "nasnet_cifar",
            (32, 32, 96),
            [(16, 16, 256), (8, 8, 512)],
            [(32, 32, 192), (16, 16, 384), (8, 8, 768)],
        ),
    ],
)
def test_cells_have_the_published_shapes(name, stem, reductions, stages):
    facts, cells = MODELS.get(name).facts, nasnet.VARIANTS[name].cells
    model = MODELS.build(MODELS.spec(name), facts["native"], facts["native_classes"])

    def shape(layer: str) -> tuple[int, ...]:
        return model.get_layer(layer).output.shape[1:]

    assert shape("stem_norm" if name in nasnet.CIFAR else "stem_cell2_concat") == stem
    assert [shape(f"stage{stage}_block1_concat") for stage in (2, 3)] == reductions
    for stage, expected in enumerate(stages, start=1):
        first = 1 if stage == 1 else 2
        for block in range(first, first + cells):
            assert shape(f"stage{stage}_block{block}_concat") == expected


@pytest.mark.parametrize(
    ("name", "million_params", "million_macs"),
    [("nasnet_mobile", 5.3, 564), ("nasnet_large", 88.9, 23_800)],
)
def test_costs_are_those_of_tables_2_and_3(name, million_params, million_macs):
    facts = MODELS.get(name).facts
    assert facts["params"] / 1e6 == pytest.approx(million_params, rel=0.002)
    assert facts["macs"] / 1e6 == pytest.approx(million_macs, rel=0.001)


def test_operations_drop_at_a_rate_in_proportion_to_the_depth_of_their_cell():
    model = nasnet.nasnet("nasnet_cifar", (8, 8, 3), 10, drop_path_rate=0.4)
    rates = {layer.name: layer.rate for layer in model.layers if layer.name.endswith("_drop")}
    assert rates["stage1_block1_left1_drop"] == pytest.approx(0.4 / 20)
    assert rates["stage3_block7_left1_drop"] == pytest.approx(0.4)
    # Identities are kept: eight operations of a normal cell drop, and nine of a reduction cell.
    assert len(rates) == 18 * 8 + 2 * 9
