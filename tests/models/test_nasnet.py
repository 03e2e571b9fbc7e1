import numpy as np
import pytest

from cnnbench import evaluate, load_recipe, train
from cnnbench.backend.lazy import keras
from cnnbench.errors import UsageError
from cnnbench.models import nasnet
from cnnbench.models.build import build_model
from cnnbench.models.complexity import count_params
from cnnbench.registry.kinds import MODELS
from cnnbench.runs import checkpoint, network


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
        pytest.param(
            "nasnet_cifar",
            (32, 32, 96),
            [(16, 16, 256), (8, 8, 512)],
            [(32, 32, 192), (16, 16, 384), (8, 8, 768)],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("structure_only")
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


@pytest.mark.usefixtures("structure_only")
def test_operations_drop_at_a_rate_in_proportion_to_the_depth_of_their_cell():
    model = nasnet.nasnet("nasnet_cifar", (8, 8, 3), 10, drop_path_rate=0.4)
    rates = {layer.name: layer.rate for layer in model.layers if layer.name.endswith("_drop")}
    assert rates["stage1_block1_left1_drop"] == pytest.approx(0.4 / 20)
    assert rates["stage3_block7_left1_drop"] == pytest.approx(0.4)
    # Identities are kept: eight operations of a normal cell drop, and nine of a reduction cell.
    assert len(rates) == 18 * 8 + 2 * 9


@pytest.mark.slow
def test_the_auxiliary_classifier_stands_behind_stage_2_and_serves_training_alone():
    spec = MODELS.spec("nasnet_cifar", auxiliary_weight=0.4)
    whole = build_model(spec, (32, 32, 3), 10, auxiliary=True)
    assert [tuple(output.shape[1:]) for output in whole.outputs] == [(10,), (10,)]
    # 16x16 pixels behind stage 2; the last convolution takes what the pooling leaves at once.
    assert whole.get_layer("auxiliary_pool").output.shape[1:] == (4, 4, 384)
    assert whole.get_layer("auxiliary_conv2").output.shape[1:] == (1, 1, 768)
    plain = build_model(spec, (32, 32, 3), 10)
    assert plain.output_shape == (None, 10)
    assert count_params(plain) == MODELS.get("nasnet_cifar").facts["params"]


@pytest.mark.parametrize(("name", "least"), [("nasnet_cifar", 9), ("nasnet_mobile", 80)])
@pytest.mark.usefixtures("structure_only")
def test_the_auxiliary_classifier_wants_larger_images(name, least, monkeypatch):
    one_cell = nasnet.VARIANTS[name]._replace(cells=1)
    monkeypatch.setitem(nasnet.VARIANTS, name, one_cell)
    spec = MODELS.spec(name, auxiliary_weight=0.4)
    with pytest.raises(UsageError, match=f"at least {least}x{least}"):
        build_model(spec, (least - 1, least - 1, 3), 10)
    assert build_model(spec, (least, least, 3), 10).output_shape == (None, 10)


@pytest.mark.slow
def test_the_loss_of_the_auxiliary_classifier_is_weighted_and_its_weights_are_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(nasnet.VARIANTS, "nasnet_cifar", nasnet.Variant(1, 48, 8, 32))
    (tmp_path / "n.yaml").write_text("""
name: auxiliary
model: {name: nasnet_cifar, auxiliary_weight: 0.4}
data: {name: synthetic, batch_size: 8, examples: 16, shape: [20, 20, 3]}
optimizer: {name: sgd, lr: 0.1}
train: {steps: 2}
""")
    run = train(load_recipe(tmp_path / "n.yaml"), run_dir=tmp_path / "run")
    saved = checkpoint.load(run.best).arrays
    (moved,) = (v for k, v in saved.items() if k.endswith("auxiliary_logits/bias"))
    assert np.any(moved != 0)
    net = network.restore(run)
    assert not any(layer.name.startswith("auxiliary") for layer in net.model.layers)
    assert evaluate(run)["examples"] == 16


@pytest.mark.parametrize(("option", "corner"), [("zeros", 0.0), ("excluded", -1.0)])
@pytest.mark.usefixtures("structure_only")
def test_strided_max_pooling_pads_as_asked(option, corner, monkeypatch):
    monkeypatch.setitem(nasnet.VARIANTS, "nasnet_cifar", nasnet.Variant(1, 24, 8, 32))
    model = build_model(MODELS.spec("nasnet_cifar", max_pool_padding=option), (32, 32, 3), 2)
    pools = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.MaxPooling2D) and layer.strides == (2, 2)
    ]
    assert pools
    for layer in pools:
        before = layer.input._keras_history.operation
        padded = before.name == f"{layer.name}_pad"
        tensor = before.input if padded else layer.input
        images = -np.ones((1, *tensor.shape[1:]), np.float32)
        pooled = keras.Model(tensor, layer.output)(images)
        assert pooled[0, -1, -1, 0] == corner and pooled[0, 0, 0, 0] == -1
