"""ResNeXt: Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks"."""

from __future__ import annotations

from functools import partial

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import Activation, stem_min_size
from cnnbench.models.register import add_model
from cnnbench.models.resnet import Bottlenecks, Stem, bottleneck_resnet
from cnnbench.registry.limits import Fraction, Rate

# 32x4d: a cardinality of 32 groups, each of 4 channels in the first stage.
IMAGENET = {
    "resnext50_32x4d": Bottlenecks((3, 4, 6, 3), groups=32, width=4),
    "resnext101_32x8d": Bottlenecks((3, 4, 23, 3), groups=32, width=8),
    "resnext101_64x4d": Bottlenecks((3, 4, 23, 3), groups=64, width=4),
}
# Section 5.3. resnext20 is not in the paper: two blocks per stage, small enough for a CPU.
CIFAR = {
    "resnext20_8x4d": Bottlenecks((2, 2, 2), groups=8, width=4),
    "resnext29_8x64d": Bottlenecks((3, 3, 3), groups=8, width=64),
    "resnext29_16x64d": Bottlenecks((3, 3, 3), groups=16, width=64),
}
SOURCES = {
    "resnext50_32x4d": "Xie et al. 2017, table 1",
    "resnext101_32x8d": "Mahajan et al. 2018; torchvision",
    "resnext101_64x4d": "Xie et al. 2017, table 4",
    "resnext20_8x4d": "after Xie et al. 2017, section 5.3",
    "resnext29_8x64d": "Xie et al. 2017, table 7",
    "resnext29_16x64d": "Xie et al. 2017, table 7",
}
# Trainable parameters, and multiply-accumulates for one image of the native size.
COUNTS = {
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_64x4d": (83_455_272, 15_460_270_080),
    "resnext20_8x4d": (1_344_842, 203_892_736),
    "resnext29_8x64d": (34_426_698, 5_387_266_048),
    "resnext29_16x64d": (68_155_210, 10_688_866_304),
}


def resnext(
    name: str,
    net: Bottlenecks,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    stem: Stem = "imagenet",
    se_ratio: Fraction = 0.0,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNeXt for ImageNet: a ResNet with grouped 3x3 convolutions (figure 3, c).

    The options are those of ResNet.
    """
    return bottleneck_resnet(
        name,
        net,
        input_shape,
        classes,
        stem=stem,
        se_ratio=se_ratio,
        drop_path_rate=drop_path_rate,
        activation=activation,
        dropout=dropout,
    )


def cifar_resnext(
    name: str,
    net: Bottlenecks,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    se_ratio: Fraction = 0.0,
    drop_path_rate: Rate = 0.0,
    activation: Activation = "relu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """ResNeXt with three stages for 32x32 images."""
    return resnext(
        name,
        net,
        input_shape,
        classes,
        stem="cifar",
        se_ratio=se_ratio,
        drop_path_rate=drop_path_rate,
        activation=activation,
        dropout=dropout,
    )


for _name, _net in IMAGENET.items():
    add_model(
        _name,
        partial(resnext, _name, _net),
        COUNTS[_name],
        family="resnext",
        source=SOURCES[_name],
        min_size=stem_min_size,
    )
for _name, _net in CIFAR.items():
    add_model(
        _name,
        partial(cifar_resnext, _name, _net),
        COUNTS[_name],
        family="resnext",
        source=SOURCES[_name],
        native=(32, 32, 3),
        classes=10,
        min_size=4,
    )
