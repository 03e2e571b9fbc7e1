import pytest

from cnnbench.models import densenet
from cnnbench.registry.kinds import MODELS


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("densenet_40_12", 1.0),
        ("densenet_bc_100_12", 0.8),
        ("densenet_bc_250_24", 15.3),
        ("densenet_bc_190_40", 25.6),
    ],
)
def test_params_are_those_of_table_2(name, millions):
    assert round(MODELS.get(name).facts["params"] / 1e6, 1) == millions


def test_stages_have_the_sizes_of_table_1():
    model = densenet.densenet("densenet121", (224, 224, 3), 1000)
    sizes = {
        stage: model.get_layer(f"stage{stage}_block{depth}_concat").output.shape[1:]
        for stage, depth in enumerate((6, 12, 24, 16), start=1)
    }
    assert sizes == {1: (56, 56, 256), 2: (28, 28, 512), 3: (14, 14, 1024), 4: (7, 7, 1024)}


def test_cifar_stem_keeps_the_resolution():
    model = densenet.densenet("densenet121", (32, 32, 3), 10, stem="cifar")
    assert model.get_layer("stem_conv").output.shape[1:] == (32, 32, 64)
    assert model.get_layer("head_act").output.shape[1:] == (4, 4, 1024)


@pytest.mark.parametrize("name", ["densenet_40_12", "densenet_bc_40_12"])
def test_conv_dropout_follows_every_convolution_but_the_first(name):
    model = densenet.cifar_densenet(name, (32, 32, 3), 10, conv_dropout=0.2)
    names = {layer.name for layer in model.layers}
    convs = {layer for layer in names if layer.endswith("_conv")} - {"stem_conv"}
    dropouts = {layer for layer in names if layer.endswith("_dropout")}
    # 40 layers, less the stem and the logits.
    assert len(convs) == 38
    assert dropouts == {conv.replace("_conv", "_dropout") for conv in convs}
