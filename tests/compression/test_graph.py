"""Functional models as graphs."""

import numpy as np
import tensorflow as tf

from cnnbench.backend.lazy import keras
from cnnbench.compression.graph import copied, inputs_of, rebuilt, users


def forked():
    """Returns a model with a branch, a sum and two outputs, and a kernel that is not trained."""
    images = keras.Input((4, 4, 3), name="images")
    left = keras.layers.Conv2D(3, 1, name="left")
    total = keras.layers.Add(name="total")([images, left(images)])
    left.kernel.trainable = False
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(total)
    return keras.Model(images, [keras.layers.Dense(2, name="logits")(pooled), total], name="forked")


def test_who_takes_whose_output():
    model = forked()
    assert inputs_of(model.get_layer("images")) == []
    assert inputs_of(model.get_layer("total")) == ["images", "left"]
    assert users(model) == {
        "images": ["left", "total"],
        "left": ["total"],
        "total": ["pool", None],
        "pool": ["logits"],
        "logits": [None],
    }


def test_a_copy_layer_by_layer_is_the_same():
    model = forked()
    copy = rebuilt(model, copied)
    assert copy.name == "forked"
    assert [v.path for v in copy.variables] == [v.path for v in model.variables]
    assert [v.path for v in copy.trainable_variables] == [v.path for v in model.trainable_variables]
    images = tf.random.stateless_normal((2, 4, 4, 3), (1, 2))
    for own, other in zip(copy(images), model(images), strict=True):
        assert np.array_equal(own, other)
    copy.get_layer("left").bias.assign([1, 2, 3])
    assert not np.any(model.get_layer("left").bias)


def test_layers_can_be_left_out_and_put_in():
    def make(layer, taken):
        if layer.name == "left":
            return taken
        out = copied(layer, taken)
        return keras.layers.Rescaling(2.0, name="twice")(out) if layer.name == "images" else out

    copy = rebuilt(forked(), make)
    assert [layer.name for layer in copy.layers] == ["images", "twice", "total", "pool", "logits"]
    assert np.all(copy(tf.ones((1, 4, 4, 3)))[1] == 4)
