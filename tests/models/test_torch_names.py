"""Names of weights in PyTorch libraries, and the options with which networks compute as theirs."""

import parity
import pytest

from cnnbench.backend.lazy import keras
from cnnbench.models.build import build_model
from cnnbench.models.pretrained.load import names_of
from cnnbench.models.pretrained.names._torch import PYTORCH
from cnnbench.models.pretrained.sources import SILENT
from cnnbench.registry.kinds import MODELS

KINDS = {"w": "kernel", "b": "bias", "g": "gamma", "m": "moving_mean"}
# As `state_dict()` of the library has them: network, library, our weight, its name.
STATED = """
mobilenet_v1 timm stem_conv/w conv_stem.weight
mobilenet_v1 timm stage2_block2_depthwise_norm/m blocks.1.1.bn1.running_mean
mobilenet_v1 timm stage2_block2_pointwise/w blocks.1.1.conv_pw.weight
mobilenet_v1 timm logits/b classifier.bias
mobilenet_v2 timm stage1_block1_project/w blocks.0.0.conv_pw.weight
mobilenet_v2 timm stage2_block1_expand/w blocks.1.0.conv_pw.weight
mobilenet_v2 timm stage2_block1_project_norm/g blocks.1.0.bn3.weight
mobilenet_v2 timm head_conv/w conv_head.weight
mobilenet_v2 torchvision stem_norm/g features.0.1.weight
mobilenet_v2 torchvision stage1_block1_depthwise/w features.1.conv.0.0.weight
mobilenet_v2 torchvision stage1_block1_project/w features.1.conv.1.weight
mobilenet_v2 torchvision stage1_block1_project_norm/g features.1.conv.2.weight
mobilenet_v2 torchvision stage2_block2_depthwise_norm/m features.3.conv.1.1.running_mean
mobilenet_v2 torchvision stage2_block2_project/w features.3.conv.2.weight
mobilenet_v2 torchvision head_conv/w features.18.0.weight
mobilenet_v2 torchvision logits/w classifier.1.weight
mobilenet_v3_small torchvision stage1_block1_se_reduce/w features.1.block.1.fc1.weight
mobilenet_v3_small torchvision stage2_block1_project/w features.2.block.2.0.weight
mobilenet_v3_small torchvision head_conv/w features.12.0.weight
mobilenet_v3_large torchvision stage1_block1_depthwise/w features.1.block.0.0.weight
mobilenet_v3_large torchvision stage3_block1_se_expand/b features.4.block.2.fc2.bias
mobilenet_v3_large torchvision stage3_block1_project_norm/g features.4.block.3.1.weight
mobilenet_v3_large torchvision head_dense/w classifier.0.weight
mobilenet_v3_large torchvision logits/w classifier.3.weight
efficientnet_b0 torchvision stage1_block1_se_reduce/w features.1.0.block.1.fc1.weight
efficientnet_b0 torchvision stage2_block1_expand/w features.2.0.block.0.0.weight
efficientnet_b0 torchvision stage2_block2_project/w features.2.1.block.3.0.weight
efficientnet_b0 torchvision head_norm/g features.8.1.weight
efficientnet_b0 torchvision logits/b classifier.1.bias
efficientnet_v2_s torchvision stage1_block2_project/w features.1.1.block.0.0.weight
efficientnet_v2_s torchvision stage2_block1_project/w features.2.0.block.1.0.weight
efficientnet_v2_s torchvision stage4_block1_se_reduce/w features.4.0.block.2.fc1.weight
efficientnet_v2_s torchvision head_conv/w features.7.0.weight
nasnet_large timm stem_conv/w conv0.conv.weight
nasnet_large timm stem_cell1_conv/w cell_stem_0.conv_1x1.conv.weight
nasnet_large timm stage1_block2_previous_conv/w cell_1.conv_prev_1x1.conv.weight
nasnet_large timm stage2_block1_norm/g reduction_cell_0.conv_1x1.bn.weight
nasnet_large timm stage1_block2_right1_norm2/g cell_1.comb_iter_0_right.bn_sep_2.weight
nasnet_large timm logits/w last_linear.weight
"""


def smallest():
    """The smallest network of each family and of each option that shows in the weights.

    Where it can, it pads and normalizes as PyTorch does.
    """
    found = {}
    for _, name, options in parity.torch_models():
        shown = {key: value for key, value in options.items() if key not in SILENT}
        found.setdefault((MODELS.get(name).facts["family"], *shown.items()), []).append(name)
    for (_, *shown), names in found.items():
        name = min(names, key=lambda name: MODELS.get(name).facts["params"])
        silent = PYTORCH if "padding" in MODELS.spec(name).options() else {}
        marks = [pytest.mark.slow] if name in LARGE else []
        yield pytest.param(name, dict(shown) | silent, marks=marks, id=f"{name}{shown or ''}")


LARGE = ("nasnet_large", "resnet50")


@pytest.mark.parametrize(("name", "options"), list(smallest()))
@pytest.mark.usefixtures("structure_only")
def test_a_network_is_named_one_to_one_and_computes_as_in_pytorch(name, options):
    size = parity.input_size(name)
    model = build_model(MODELS.spec(name, **options), (size, size, 3), 10)
    names = names_of(name)
    for naming in getattr(names, "TORCH_NAMINGS", {"": names.torch_name}).values():
        theirs = [naming(name, weight.path) for weight in model.weights]
        assert len(set(theirs)) == len(theirs)
    if "padding" in options:
        check_padding(model)
    if "epsilon" in options:
        norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
        assert norms and {norm.epsilon for norm in norms} == {options["epsilon"]}


def check_padding(model):
    """Every strided convolution has kernel // 2 pixels of padding on all four sides."""
    convolutions = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    strided = [
        layer
        for layer in model.layers
        if isinstance(layer, convolutions) and layer.strides > (1, 1) and layer.kernel_size > (1, 1)
    ]
    assert len(strided) >= 4
    for layer in strided:
        before = layer.input._keras_history.operation
        assert layer.padding == "valid" and isinstance(before, keras.layers.ZeroPadding2D)
        half = layer.kernel_size[0] // 2
        assert before.padding == ((half, half), (half, half))


@pytest.mark.parametrize("row", STATED.split("\n")[1:-1])
def test_names_are_those_that_a_library_states(row):
    network, library, ours, theirs = row.split()
    layer, _, kind = ours.partition("/")
    names = names_of(network)
    naming = getattr(names, "TORCH_NAMINGS", {}).get(library, names.torch_name)
    assert naming(network, f"{layer}/{KINDS[kind]}") == theirs
