"""AlexNet and VGG against their papers, keras.applications and torchvision's layout."""

import numpy as np
import pytest

from cnnbench.backend.lazy import keras
from cnnbench.models.build import build_model
from cnnbench.models.complexity import count_params
from cnnbench.models.layers.blocks import resize_map
from cnnbench.models.pretrained.names import alexnet as alexnet_names
from cnnbench.models.pretrained.names import vgg as vgg_names
from cnnbench.registry.kinds import MODELS, min_size


def build(name, size, classes=10, **options):
    return build_model(MODELS.spec(name, **options), (size, size, 3), classes)


def adaptive_average_pool(images, size):
    """PyTorch's definition: each output averages pixels from its floor to its ceiling."""
    for axis in (1, 2):
        n = images.shape[axis]
        windows = [range(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        means = [images.take(window, axis).mean(axis) for window in windows]
        images = np.stack(means, axis)
    return images


@pytest.mark.parametrize("height", [1, 2, 5, 7, 8, 13, 14])
@pytest.mark.parametrize("width", [1, 7, 9])
def test_resize_map_is_adaptive_average_pooling(height, width):
    images = keras.Input((height, width, 2))
    # predict runs a graph, where Keras's own layer fails for one pixel.
    model = keras.Model(images, resize_map(images, 7, "pool"))
    pixels = np.random.default_rng(0).normal(size=(2, height, width, 2)).astype(np.float32)
    expected = adaptive_average_pool(pixels, 7)
    np.testing.assert_allclose(model.predict(pixels, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "depth"), [("vgg11", 11), ("vgg13_bn", 13), ("vgg19", 19)])
@pytest.mark.usefixtures("structure_only")
def test_vgg_depth_is_the_number_in_the_name(name, depth):
    layers = keras.layers
    weighted = [
        x
        for x in build(name, 32, head="pool").layers
        if isinstance(x, layers.Conv2D | layers.Dense)
    ]
    assert len(weighted) == depth - 2  # one dense layer in place of three


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        # 2.47 M and 20.04 M in bearpaw/pytorch-classification.
        ("alexnet", {"stem": "cifar"}, 2_472_266),
        ("vgg19_bn", {"head": "pool"}, 20_040_522),
    ],
)
def test_params_of_the_variants_for_cifar(name, options, params):
    assert count_params(build(name, 32, **options)) == params


@pytest.mark.slow
@pytest.mark.parametrize("name", vgg_names.KERAS_MODELS)
def test_vgg_equals_keras_applications(name):
    reference = getattr(keras.applications, vgg_names.KERAS_MODELS[name])(
        weights=None, classifier_activation=None
    )
    published = {v.path: v.numpy() for v in reference.variables}
    model = build(name, 224, classes=1000, dropout=0.0)
    for variable in model.variables:
        variable.assign(published.pop(vgg_names.keras_name(name, variable.path)))
    assert not published
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), reference(images), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("vgg11", "stage5_conv2/kernel", "features.18.weight"),
        ("vgg11_bn", "stage5_conv2/bias", "features.25.bias"),
        ("vgg11_bn", "stage5_norm2/moving_mean", "features.26.running_mean"),
        ("vgg16", "stage5_conv3/kernel", "features.28.weight"),
        ("vgg19", "stage5_conv4/kernel", "features.34.weight"),
        ("vgg19_bn", "stage5_norm4/gamma", "features.50.weight"),
        ("vgg16", "head_dense2/kernel", "classifier.3.weight"),
    ],
)
def test_torch_names_of_vgg(name, path, expected):
    assert vgg_names.torch_name(name, path) == expected


@pytest.mark.parametrize(
    ("names", "name", "size"), [(vgg_names, "vgg11", 32), (alexnet_names, "alexnet", 63)]
)
def test_torch_layout_is_what_the_first_dense_layer_sees(names, name, size):
    channels, height, width = names.torch_layout(name, "head_dense1/kernel")
    flatten = build(name, size).get_layer("head_flatten")
    assert flatten.input.shape[1:] == (height, width, channels)
    assert names.torch_layout(name, "head_dense2/kernel") is None


def test_local_response_normalisation_is_that_of_section_3_3():
    model = build("alexnet", 32, stem="cifar", lrn=True)
    layer = model.get_layer("stage1_lrn")
    images = 50 * np.random.default_rng(0).normal(size=(2, 3, 3, 64)).astype(np.float32)
    squares = np.pad(images**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    sums = sum(squares[..., i : i + 64] for i in range(5))
    np.testing.assert_allclose(layer(images), images / (2 + 1e-4 * sums) ** 0.75, rtol=1e-5)
    assert "stage2_lrn" in {x.name for x in model.layers}
    again = keras.models.model_from_json(model.to_json())
    assert [x.name for x in again.layers] == [x.name for x in model.layers]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_local_response_normalisation_in_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = build("alexnet", 32, stem="cifar", lrn=True)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.all(np.isfinite(model(np.ones((1, 32, 32, 3), np.float32))))


@pytest.mark.parametrize(("stem", "least"), [("imagenet", 63), ("cifar", 29)])
@pytest.mark.usefixtures("structure_only")
def test_the_least_size_of_alexnet_leaves_one_pixel(stem, least):
    assert min_size(MODELS.spec("alexnet", stem=stem)) == least
    last = build("alexnet", least, stem=stem).get_layer("stage3_pool")
    assert last.output.shape[1:3] == (1, 1)
