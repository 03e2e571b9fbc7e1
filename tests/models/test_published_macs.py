"""Multiply-accumulates against what the authors, or those who publish the weights, say of them."""

import pytest

from cnnbench.models.build import build_model
from cnnbench.models.complexity import count_macs
from cnnbench.registry.kinds import MODELS

TOLERANCE = 0.02
TORCHVISION = "torchvision.models, `_ops` of the weights"

# Of one native image, in millions. Left out are sources that count more than convolutions and
# dense layers: the authors' tables of EfficientNetV2 and of the Lite variants.
PUBLISHED = [
    ("alexnet", 714, TORCHVISION),
    ("vgg11", 7_609, TORCHVISION),
    ("vgg16", 15_470, TORCHVISION),
    ("vgg19_bn", 19_632, TORCHVISION),
    ("resnet18", 1_814, TORCHVISION),
    ("resnet50", 4_089, TORCHVISION),
    ("resnet152", 11_514, TORCHVISION),
    ("resnext50_32x4d", 4_230, TORCHVISION),
    ("resnext101_64x4d", 15_460, TORCHVISION),
    ("wide_resnet50_2", 11_398, TORCHVISION),
    ("densenet121", 2_834, TORCHVISION),
    ("densenet161", 7_728, TORCHVISION),
    ("mobilenet_v1", 569, "Howard et al. 2017, table 4"),
    ("mobilenet_v1_075", 325, "Howard et al. 2017, table 6"),
    ("mobilenet_v1_050", 149, "Howard et al. 2017, table 6"),
    ("mobilenet_v1_025", 41, "Howard et al. 2017, table 6"),
    ("mobilenet_v2", 300, "Sandler et al. 2018, table 4"),
    ("mobilenet_v2_140", 585, "Sandler et al. 2018, table 4"),
    ("mobilenet_v3_large", 219, "Howard et al. 2019, table 3"),
    ("mobilenet_v3_small", 57, TORCHVISION),
    ("nasnet_mobile", 564, "Zoph et al. 2018, table 3"),
    ("nasnet_large", 23_800, "Zoph et al. 2018, table 2"),
    ("efficientnet_b0", 390, "Tan & Le 2019, table 2"),
    ("efficientnet_b3", 1_827, TORCHVISION),
    ("efficientnet_b7", 37_746, TORCHVISION),
    ("efficientnet_v2_s", 8_366, TORCHVISION),
    ("efficientnet_v2_m", 24_582, TORCHVISION),
]
# Vitis AI Model Zoo 3.0, tf_resnetv2_50_imagenet_299_299_13.1G: two operations each.
RESNET50V2_AT_299 = 13_100 / 2
# LeCun et al. 1998, section II.B: connections of C1, C3, C5 and F6, biases among them. C3 joins 60
# of the 96 pairs of maps, ours all of them.
LENET5 = (122_304 + 151_600 + 48_120 + 10_164) / 1e6
LENET5_MORE = (96 - 60) * 25 * 10 * 10 / 1e6


@pytest.mark.parametrize(("name", "millions", "source"), PUBLISHED)
def test_macs_are_those_published(name, millions, source):
    assert MODELS.get(name).facts["macs"] / 1e6 == pytest.approx(millions, rel=TOLERANCE), source


@pytest.mark.usefixtures("structure_only")
def test_macs_of_resnet_v2_are_those_published_for_larger_images():
    model = build_model("resnet50v2", (299, 299, 3), 1000)
    assert count_macs(model) / 1e6 == pytest.approx(RESNET50V2_AT_299, rel=TOLERANCE)


def test_macs_of_lenet_are_the_connections_published():
    macs = MODELS.get("lenet5").facts["macs"] / 1e6
    assert macs == pytest.approx(LENET5 + LENET5_MORE, rel=TOLERANCE)


def test_macs_of_airbench_are_those_of_the_published_training():
    # Jordan 2024, section 1: 3.6e14 operations in 9.9 epochs, forward and twice as many backward.
    images = 9.9 * 50_000
    assert 2 * 3 * images * MODELS.get("airbench94").facts["macs"] == pytest.approx(
        3.6e14, rel=0.03
    )


def test_every_family_is_among_them():
    tested = {name for name, _, _ in PUBLISHED} | {"resnet50v2", "lenet5", "airbench94"}
    families = {MODELS.get(name).facts["family"] for name in MODELS.names()}
    assert families == {MODELS.get(name).facts["family"] for name in tested}
