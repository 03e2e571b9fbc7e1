"""What other libraries call the weights of the families whose blocks are MobileNet's."""

from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("model", "path", "keras_name", "torch_name"),
    [
        ("efficientnet_b0", "stem_conv/kernel", "stem_conv/kernel", "conv_stem.weight"),
        ("efficientnet_b0", "stage1_block1_project_norm/gamma", "block1a_project_bn/gamma",
         "blocks.0.0.bn2.weight"),
        ("efficientnet_b0", "stage3_block2_depthwise/kernel", "block3b_dwconv/kernel",
         "blocks.2.1.conv_dw.weight"),
        ("efficientnet_v2_s", "stage1_block2_project/kernel", "block1b_project_conv/kernel",
         "blocks.0.1.conv.weight"),
        ("efficientnet_v2_s", "stage3_block1_expand/kernel", "block3a_expand_conv/kernel",
         "blocks.2.0.conv_exp.weight"),
        ("efficientnet_v2_s", "stage4_block1_depthwise/kernel", "block4a_dwconv2/kernel",
         "blocks.3.0.conv_dw.weight"),
        ("mobilenet_v3_large", "head_dense/kernel", "conv_2/kernel", "conv_head.weight"),
        ("mobilenet_v3_large", "head_norm/beta", "conv_1_bn/beta", "blocks.6.0.bn1.bias"),
        ("mobilenet_v3_large", "stage1_block1_project/kernel", "expanded_conv_project/kernel",
         "blocks.0.0.conv_pw.weight"),
        ("mobilenet_v3_large", "stage2_block1_se_reduce/bias",
         "expanded_conv_1_squeeze_excite_conv/bias", "blocks.1.0.se.conv_reduce.bias"),
    ],
)  # fmt: skip
def test_a_weight_is_found_by_its_name(model, path, keras_name, torch_name):
    family = model.rpartition("_")[0]
    names = import_module(f"cnnbench.models.pretrained.names.{family}")
    assert names.keras_name(model, path) == keras_name
    assert names.torch_name(model, path) == torch_name
