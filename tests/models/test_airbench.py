"""airbench: what its first weights are."""

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.models.airbench import whiten
from cnnbench.models.build import build_model
from cnnbench.registry.kinds import MODELS


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_convolution_whitens_patches_and_is_not_trained(channels, random):
    model = build_model("airbench94", (12, 12, channels), 10)
    noise = random.normal(size=(200, 14, 14, channels)).astype(np.float32)
    # Neighbours are alike, as in photographs.
    images = noise[:, 2:, 2:] + noise[:, 1:-1, 1:-1] + 0.5 * noise[:, :-2, :-2]
    whiten(model, images)
    layer = model.get_layer("stem_whiten")
    layer.bias.assign(tf.zeros_like(layer.bias))
    outputs = layer(images).numpy().reshape(-1, 8 * channels)
    half = 4 * channels
    assert np.allclose(outputs[:, :half], -outputs[:, half:], atol=1e-5)
    moments = outputs[:, :half].T @ outputs[:, :half] / len(outputs)
    assert np.allclose(moments, np.eye(half), atol=0.02)
    trained = {id(variable) for variable in model.trainable_variables}
    assert id(layer.kernel) not in trained and id(layer.bias) in trained


def test_convolutions_begin_as_identities(random):
    model = build_model("airbench94", (32, 32, 3), 10)
    for layer in model.layers:
        if "_conv" not in layer.name:
            continue
        channels = layer.kernel.shape[2]
        maps = random.normal(size=(2, 5, 5, channels)).astype(np.float32)
        kept = min(channels, layer.filters)
        assert np.allclose(layer(maps)[..., :kept], maps[..., :kept], atol=1e-5), layer.name
        rest = layer.kernel.numpy()[..., kept:]
        if rest.size:
            # The limit rounded as weights are, which are drawn up to it.
            limit = np.float32(1 / np.sqrt(9 * channels))
            assert 0.9 * limit < np.abs(rest).max() <= np.nextafter(limit, np.float32(1))


def build_with(**options):
    return build_model(MODELS.spec("airbench94", **options), (32, 32, 3), 10)


def test_width_scales_every_stage():
    half = build_with(width=0.5)
    filters = [layer.filters for layer in half.layers if "_conv" in layer.name]
    assert filters == [32, 32, 128, 128, 128, 128]
