"""Dropout on one replica; on several see tests/training/test_replicas.py."""

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.backend.lazy import keras
from cnnbench.models.layers.blocks import drop, drop_path
from cnnbench.models.layers.dropout import Dropout
from cnnbench.models.layers.fast import plain


@pytest.mark.parametrize(("shape", "xla"), [(None, False), ((None, 1, 1, 1), True)])
def test_one_replica_drops_what_keras_drops(shape, xla):
    images = np.random.default_rng(0).normal(size=(8, 3, 3, 4)).astype(np.float32)
    found = []
    for kind in (keras.layers.Dropout, Dropout):
        layer = kind(0.5, noise_shape=shape, seed=3)
        call = tf.function(lambda x, layer=layer: layer(x, training=True), jit_compile=xla)
        found.append([call(images).numpy() for _ in range(3)])
        assert np.array_equal(layer(images, training=False), images)
    assert np.array_equal(*found)
    assert not np.array_equal(found[0][0], found[0][1])


def test_an_exported_network_has_keras_layers():
    inputs = keras.Input((2, 2, 4))
    dropped = drop_path(drop(inputs, 0.5, "units"), 0.5, "paths")
    layers = plain(keras.Model(inputs, dropped)).layers[1:]
    assert [type(layer) for layer in layers] == 2 * [keras.layers.Dropout]
    assert [layer.name for layer in layers] == ["units", "paths"]


def test_without_a_rate_there_is_no_layer():
    inputs = keras.Input((2, 2, 4))
    assert drop(inputs, 0.0, "units") is inputs and drop_path(inputs, 0.0, "paths") is inputs
