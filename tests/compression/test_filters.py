"""Networks without some of their filters, against the whole ones with those channels zero.

A family stands here in a small variant; the larger ones are slow.
"""

import json
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.backend.lazy import keras
from cnnbench.compression.filters import rebuild, thin
from cnnbench.errors import UsageError
from cnnbench.models import resnet, resnet_v2, resnext, vgg, wide_resnet
from cnnbench.models.build import build_model
from cnnbench.models.complexity import count_macs
from cnnbench.registry.kinds import MODELS

SHAPE, CLASSES = (32, 32, 3), 5


def registered(name, **options):
    return partial(build_model, MODELS.spec(name, **options), SHAPE, CLASSES)


GROUPED = resnet.Bottlenecks((1, 2, 1), groups=16, width=4)
NETS = {
    "airbench": registered("airbench94", width=0.25),
    "alexnet": registered("alexnet", stem="cifar"),
    "densenet": registered("densenet_bc_40_12"),
    "efficientnet": registered("efficientnet_b0", stem="cifar"),
    "efficientnet_v2": registered("efficientnet_v2_b0", stem="cifar"),
    "lenet": registered("lenet5"),
    "mobilenet_v1": registered("mobilenet_v1_025"),
    "mobilenet_v2": registered("mobilenet_v2_050"),
    "mobilenet_v3": registered("mobilenet_v3_small"),
    "nasnet": registered("nasnet_cifar", auxiliary_weight=0.4),
    "resnet": registered("resnet14", activation="prelu", dropout=0.1),
    "resnet_deep": partial(
        resnet.bottleneck_resnet,
        "resnet_deep",
        resnet.Bottlenecks((1, 2, 1)),
        SHAPE,
        CLASSES,
        stem="deep",
        se_ratio=0.25,
    ),
    "resnet_v2": partial(resnet_v2.cifar_resnet_v2, "resnet_v2", (2, 2, 2), SHAPE, CLASSES),
    "resnext": partial(resnext.resnext, "resnext", GROUPED, SHAPE, CLASSES, se_ratio=0.25),
    "vgg": partial(vgg.vgg, "vgg", (1, 2, 1, 1, 1), True, SHAPE, CLASSES, head="pool"),
    "wide_resnet": partial(wide_resnet.wide_resnet, "wide_resnet", 16, 2, SHAPE, CLASSES),
}
# The last three are made of what MobileNetV3 and the second ResNet are made of.
SLOW = (
    *("densenet", "efficientnet", "efficientnet_v2", "nasnet"),
    *("mobilenet_v1", "mobilenet_v2", "wide_resnet"),
)
# Share of the MACs, and divisor; so every layer of LeNet, of 6 and 16 filters, loses some.
TARGETS = {"lenet": (0.25, 2)}
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETS]


@pytest.fixture(autouse=True)
def clean_keras():
    yield
    keras.utils.clear_session()


def draw_weights(model):
    """Gives a network weights that tell themselves apart, at about the scale of trained ones."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        # A uniform distribution on -1 to 1, each value of it once.
        values = 2 * rng.permutation(np.arange(weight.numpy().size)) / weight.numpy().size - 1
        values = values.reshape(weight.shape)
        if weight.name == "kernel":
            fan_in = values[..., 0].size if "depthwise" not in weight.path else 9
            values *= np.sqrt(6 / fan_in)
        elif weight.name in ("gamma", "moving_variance"):
            values = 1 + values / 2
        weight.assign(values)


def channels_of(layer, weight):
    """Returns the axis of a weight that its layer's outputs lie along."""
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return -2 if is_depthwise and weight.name == "kernel" else -1


def zero_what_is_gone(model, thinner):
    """Sets all that makes a removed channel to zero, knowing a channel again by its values."""
    for layer in model.layers:
        pairs = zip(layer.weights, thinner.get_layer(layer.name).weights, strict=True)
        for weight, left in pairs:
            axis = channels_of(layer, weight)
            whole, part = (np.moveaxis(each.numpy(), axis, -1) for each in (weight, left))
            kept = np.isin(whole, part).reshape(-1, whole.shape[-1]).any(0)
            assert kept.sum() == part.shape[-1], weight.path
            weight.assign(np.moveaxis(np.where(kept, whole, 0), -1, axis))


@pytest.mark.parametrize("name", EVERY)
def test_a_thinner_network_computes_what_the_whole_one_does_with_zeros(name):
    model = NETS[name]()
    draw_weights(model)
    share, divisor = TARGETS.get(name, (0.5, 16))
    widths, thinner = thin(model, share, divisor=divisor)
    assert 0.8 * share < count_macs(thinner) / count_macs(model) <= share
    assert [layer.name for layer in thinner.layers] == [layer.name for layer in model.layers]

    images = tf.random.stateless_normal((4, *model.input_shape[1:]), (1, 2))
    again = rebuild(model, json.loads(json.dumps(widths)))
    assert [(w.path, w.shape) for w in again.weights] == [
        (w.path, w.shape) for w in thinner.weights
    ]
    zero_what_is_gone(model, thinner)
    pairs = zip(*(tf.nest.flatten(net(images)) for net in (model, thinner)), strict=True)
    for expected, found in pairs:
        assert np.std(expected) > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(thinner(images, training=True))
        loss = tf.add_n([tf.reduce_mean(tf.math.log_softmax(each)[:, 0]) for each in outputs])
    gradients = tape.gradient(loss, thinner.trainable_variables)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    before = thinner.get_layer("logits").kernel.numpy()
    keras.optimizers.SGD(0.01).apply(gradients, thinner.trainable_variables)
    assert not np.array_equal(thinner.get_layer("logits").kernel, before)


def two_convolutions():
    """Returns a network whose first convolution has eight filters of little weight, the even."""
    x = inputs = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(16, 3, padding="same", name="first")(x)
    x = keras.layers.Conv2D(16, 3, padding="same", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="two")
    first, second = model.get_layer("first").kernel, model.get_layer("second").kernel
    first.assign(np.ones(first.shape) * np.where(np.arange(16) % 2, 1, -0.5))
    second.assign(np.ones(second.shape))
    return model


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_the_filters_of_least_norm_go_whatever_the_scale_of_their_layer(scale):
    model = two_convolutions()
    first = model.get_layer("first").kernel
    first.assign(first * scale)
    widths, thinner = thin(model, 0.51)
    assert widths == {"first": 8}
    np.testing.assert_allclose(thinner.get_layer("first").kernel, np.full((3, 3, 3, 8), scale))
    assert count_macs(thinner) == 64 * 9 * (3 * 8 + 8 * 16) + 16 * 4


def test_no_more_is_removed_than_is_wanted():
    model = two_convolutions()
    # The first is narrowed before the second, which alone would have been enough for 0.55.
    assert thin(model, 0.3)[0] == {"first": 8, "second": 8}
    assert thin(model, 1.0)[0] == {}
    assert len(thin(model, 0.96)[0]) == 1


@pytest.mark.parametrize("divisor", [4, 8, 16])
def test_widths_are_multiples_of_the_divisor(divisor):
    model = build_model("resnet20", SHAPE, CLASSES)
    draw_weights(model)
    widths, thinner = thin(model, 0.5, divisor=divisor)
    for layer in thinner.layers:
        if hasattr(layer, "filters"):
            full = model.get_layer(layer.name).filters
            assert layer.filters % min(divisor, full // 2) == 0
            assert layer.filters >= full / 8
    assert {name: n for name, n in widths.items() if isinstance(n, int)} == {
        layer.name: layer.filters
        for layer in thinner.layers
        if hasattr(layer, "filters") and layer.filters != model.get_layer(layer.name).filters
    }
    # Some channels of the first stage go on through the later ones.
    stages = [thinner.get_layer(f"stage{i}_block1_add").output.shape[-1] for i in (1, 2, 3)]
    for i in (2, 3):
        pad = thinner.get_layer(f"stage{i}_block1_shortcut_pad")
        assert stages[i - 1] == stages[i - 2] + sum(pad.padding[1])


@pytest.mark.parametrize(("share", "width"), [(0.85, 32), (0.65, 16)])
def test_a_width_that_is_no_multiple_becomes_one(share, width):
    given = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(40, 3, name="first")(given)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(given, keras.layers.Dense(4, name="logits")(x), name="wide")
    widths, thinner = thin(model, share)
    assert widths["first"] == width
    assert count_macs(thinner) <= share * count_macs(model)


def test_whole_groups_are_removed_and_what_is_not_trained_stays():
    model = NETS["resnext"]()
    _, thinner = thin(model, 0.3)
    grouped = [layer for layer in thinner.layers if getattr(layer, "groups", 1) > 1]
    assert any(layer.groups < 16 for layer in grouped)
    for layer in grouped:
        assert layer.filters / layer.groups == layer.kernel.shape[2]
        assert layer.kernel.shape[2] == model.get_layer(layer.name).kernel.shape[2]
    model = NETS["airbench"]()
    widths, thinner = thin(model, 0.3)
    assert "stem_whiten" not in widths
    assert not thinner.get_layer("stem_whiten").kernel.trainable
    assert not rebuild(model, widths).get_layer("stem_whiten").kernel.trainable


def test_what_cannot_be_thinned_is_explained():
    model = build_model("resnet8", SHAPE, CLASSES)
    with pytest.raises(UsageError, match=r"resnet8 cannot be thinned to 0\.01 .*at least 0\.\d+"):
        thin(model, 0.01)
    model = registered("alexnet", stem="cifar", lrn=True)()
    with pytest.raises(UsageError, match=r"stage1_lrn.*LocalResponseNormalization"):
        thin(model, 0.5)
    x = inputs = keras.Input((8, 8, 3), name="images")
    twice = keras.layers.Conv2D(3, 3, name="twice")
    model = keras.Model(inputs, twice(twice(x)), name="recurrent")
    with pytest.raises(UsageError, match=r"recurrent.*twice"):
        thin(model, 0.5)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"stage9_conv": 8}, "stage9_conv: a width of 8"),
        ({"stage1_block1_add": 8}, "stage1_block1_add: a width of 8"),
        ({"stem_conv": 17}, "stem_conv.*at most 16"),
        ({"stem_conv": -1}, "stem_conv.*at most 16"),
        ({"stem_conv": [8]}, "stem_conv.*at most 16"),
        ({"stem_conv": 0}, "are inconsistent"),
        ({"stage1_block1_conv2": 8}, "are inconsistent"),
        ({"stage2_block1_shortcut_pad": [4, 4]}, "are inconsistent"),
        ({"stage2_block1_shortcut_pad": 4}, r"at most \[8, 8\]"),
    ],
)
def test_widths_of_another_network_are_refused(widths, message):
    model = build_model("resnet8", SHAPE, CLASSES)
    with pytest.raises(UsageError, match=message):
        rebuild(model, widths)
