"""Every registered network, against what its registration says of it.

Those of more than LARGE weights take minutes in all and are marked slow, and so are the other
networks of a family where the smallest can stand for them.
"""

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.backend.lazy import keras
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model, feature_maps
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.registry.kinds import MODELS, min_size

LARGE = 3_000_000


# The smallest network of each family stands for the others where building one is not enough.
SMALLEST = sorted(
    {
        min(
            (n for n in MODELS.names() if MODELS.get(n).facts["family"] == family),
            key=lambda n: MODELS.get(n).facts["params"],
        )
        for family in {MODELS.get(n).facts["family"] for n in MODELS.names()}
    }
)
# Of hundreds of layers or millions of weights: they take minutes to be built so often, and have
# tests of their own.
LONG = ("alexnet", "efficientnet_v2_b0", "nasnet_cifar", "resnet164v2", "vgg11")
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SMALLEST]
EVERY = [
    pytest.param(name, marks=pytest.mark.slow)
    if MODELS.get(name).facts["params"] > LARGE and name not in SMALLEST
    else name
    for name in MODELS.names()
]
SMALLEST_FIRST = QUICK + [
    pytest.param(name, marks=pytest.mark.slow) for name in MODELS.names() if name not in SMALLEST
]


@pytest.fixture(autouse=True)
def clean_keras():
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session()


def small_input(name: str, channels: int = 3) -> tuple[int, int, int]:
    size = max(min_size(MODELS.spec(name)), 32)
    return size, size, channels


def spec_of(name: str, **options):
    """VGG is pooled before its logits, for its dense head of 120 million weights takes long.

    `test_every_weight_gets_a_gradient_and_a_step_changes_it` has the whole of it.
    """
    return MODELS.spec(name, **({"head": "pool"} if name == "vgg11" else {}), **options)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.usefixtures("structure_only")
def test_parameters_macs_names_and_pyramid_are_those_registered(name):
    facts = MODELS.get(name).facts
    model = build_model(name, facts["native"], facts["native_classes"])
    assert count_params(model) == facts["params"]
    assert count_macs(model) == facts["macs"]
    assert model.output_shape == (None, facts["native_classes"])
    assert model.layers[0].name == "images" and model.layers[-1].name == "logits"
    assert facts["source"] and facts["family"]
    if name in SMALLEST:
        check_pyramid(model, facts["native"][0])


def check_pyramid(model, size):
    maps = feature_maps(model)
    assert list(maps) == sorted(maps)
    if size > 32:
        assert {"P3", "P4", "P5"} <= maps.keys()
    for level, output in maps.items():
        exact = size / 2 ** int(level[1:])
        assert abs(output.shape[1] - exact) <= max(1, 0.25 * exact)
    assert len(keras.Model(model.inputs, maps).outputs) == len(maps)


@pytest.mark.parametrize("name", QUICK)
def test_names_do_not_depend_on_what_was_built_before(name):
    """A name that Keras counted up would be another one in the next process."""
    spec = spec_of(name, dropout=0.1)
    keras.utils.clear_session()
    with keras.StatelessScope(initialize_variables=False):
        first = build_model(spec, small_input(name), 5)
        second = build_model(spec, small_input(name), 5)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert [w.path for w in first.weights] == [w.path for w in second.weights]
    assert len({w.path for w in first.weights}) == len(first.weights)


@pytest.mark.parametrize("name", SMALLEST_FIRST)
def test_every_weight_gets_a_gradient_and_a_step_changes_it(name):
    model = build_model(name, small_input(name), 7)
    images = tf.random.stateless_normal((4, *small_input(name)), (1, 2))
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 2, 6], logits))
    assert logits.shape == (4, 7) and logits.dtype == tf.float32
    gradients = tape.gradient(loss, model.trainable_variables)
    without = [
        v.path for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None
    ]
    assert not without
    finite = [bool(tf.reduce_all(tf.math.is_finite(g))) for g in gradients]
    assert all(finite)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_mixed_precision_least_size_one_channel_and_another_activation(name, policy):
    keras.config.set_dtype_policy(policy)
    least = min_size(spec_of(name))
    model = build_model(spec_of(name, activation="elu"), (least, least, 1), 3)
    logits = model(tf.ones((2, least, least, 1)), training=False)
    assert logits.dtype == tf.float32 and np.all(np.isfinite(logits))
    assert all(v.dtype == "float32" for v in model.trainable_variables)


@pytest.mark.parametrize(
    "name",
    [  # the layers of the others are among those of these
        name
        if name in ("airbench94", "lenet5", "mobilenet_v3_small", "resnet8")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in SMALLEST
    ],
)
def test_serialisation_round_trip(name, tmp_path):
    model = build_model(spec_of(name), small_input(name), 5)
    images = tf.random.stateless_normal((2, *small_input(name)), (1, 2))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(model(images, training=False), again(images, training=False))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "elu", "swish"])
@pytest.mark.usefixtures("structure_only")
def test_activations(activation):
    model = build_model(MODELS.spec("resnet20", activation=activation), (32, 32, 3), 10)
    slopes = [v for v in model.trainable_variables if v.name == "alpha"]
    assert len(slopes) == (19 if activation == "prelu" else 0)


@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.usefixtures("structure_only")
def test_what_a_network_cannot_take_is_explained(name):
    least = min_size(MODELS.spec(name))
    with pytest.raises(UsageError, match=f"{name}.*{least - 1}x.*at least {least}"):
        build_model(name, (least - 1, least, 3), 10)
    for classes in (1, 0, -3):
        with pytest.raises(UsageError, match=f"{name}.*{classes} classes"):
            build_model(name, (64, 64, 3), classes)
