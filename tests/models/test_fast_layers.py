"""The layers that compute faster, against those of Keras."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.backend import session
from cnnbench.backend.lazy import keras
from cnnbench.models.build import build_model
from cnnbench.models.layers.fast import FastConv2D, FusedBatchNormalization, plain
from cnnbench.registry.kinds import MODELS

SHAPES = [(8, 5, 7, 3), (1, 6, 6, 4), (4, 1, 1, 16), (1, 1, 1, 2), (2, 32, 32, 1)]
SHAPE = SHAPES[0]
MODES = {"training": (True, True), "inference": (False, True), "frozen": (True, False)}
CLOSE = 1e-5


@pytest.fixture(autouse=True)
def clean_keras():
    yield
    keras.utils.clear_session()


def drawn(shape, *, seed=0, mean=0.5, dtype="float32"):
    values = np.random.default_rng(seed).normal(mean, 2, shape)
    return tf.cast(values.astype(np.float32), dtype)


def pair(shape, **options):
    """Returns Keras's layer and ours, with equal weights drawn at random."""
    kinds = (keras.layers.BatchNormalization, FusedBatchNormalization)
    layers = [kind(name="norm", **options) for kind in kinds]
    for layer in layers:
        layer.build(shape)
        for i, weight in enumerate(layer.weights):
            weight.assign(np.random.default_rng(i).uniform(0.5, 1.5, weight.shape))
    return layers


def is_fused(layer, inputs, **arguments):
    graph = tf.function(lambda x: layer(x, **arguments)).get_concrete_function(inputs).graph
    return "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}


def results(layer, inputs, training, traced=False, **how):
    """Returns outputs, gradients of inputs and weights, and the weights after a step."""

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            # So large that sums over all pixels, gradients of gamma and beta, are about 1.
            weights = drawn(x.shape, seed=9) / np.sqrt(np.prod(x.shape[:-1]))
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weights)
        return [outputs, *tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])]

    if traced or how:
        step = tf.function(step, **how)
    found = [tf.cast(value, tf.float32).numpy() for value in step(inputs)]
    return found + [tf.cast(weight.value, tf.float32).numpy() for weight in layer.weights]


def assert_close(ours, theirs, tolerance=CLOSE):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_equal(ours, theirs):
    assert_close(ours, theirs, 0)


# Every shape with the smallest epsilon that is used, and every epsilon with one shape and with
# that of a single value.
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "epsilon"),
    [
        *((shape, 1e-5) for shape in SHAPES),
        *((shape, e) for shape in (SHAPE, (1, 1, 1, 2)) for e in (1e-3, 1.001e-5, 1e-7)),
    ],
    ids=str,
)
def test_numbers_are_those_of_keras(shape, epsilon, mode):
    training, trainable = MODES[mode]
    theirs, ours = pair(shape, epsilon=epsilon, momentum=0.9)
    theirs.trainable = ours.trainable = trainable
    inputs = drawn(shape)
    assert is_fused(ours, inputs, training=training) == trainable
    # Of a single value Keras computes a - (a - beta), where a is 1 / sqrt(epsilon) of it.
    single = training and trainable and shape[:3] == (1, 1, 1)
    tolerance = max(CLOSE, 1e-7 / np.sqrt(epsilon)) if single else CLOSE
    traced = shape == SHAPE  # which takes far longer
    found, expected = (results(each, inputs, training, traced) for each in (ours, theirs))
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("center", "scale"), [(False, True), (True, False), (False, False)])
def test_without_gamma_or_beta(center, scale, mode):
    training, trainable = MODES[mode]
    theirs, ours = pair(SHAPE, center=center, scale=scale)
    theirs.trainable = ours.trainable = trainable
    assert [w.path for w in ours.weights] == [w.path for w in theirs.weights]
    inputs = drawn(SHAPE)
    assert_close(results(ours, inputs, training), results(theirs, inputs, training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
# The other shapes take the same way, and are tried in float32 above.
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 2)], ids=str)
def test_half_precision_keeps_float32_statistics(shape, policy, training):
    theirs, ours = pair(shape, dtype=policy)
    inputs = drawn(shape, dtype=ours.compute_dtype)
    assert is_fused(ours, inputs, training=training)
    assert ours(inputs).dtype == ours.compute_dtype
    a, b = results(ours, inputs, training), results(theirs, inputs, training)
    # Outputs and their gradients are rounded in the end, and so are weights that are not float32.
    rounding = 2.0 ** (-7 if "bfloat16" in policy else -10)
    assert_close(a[:2], b[:2], rounding)
    assert_close(a[2:], b[2:], CLOSE if "mixed" in policy else rounding)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_large_mean_costs_no_more_digits_than_in_keras(jit_compile):
    inputs = drawn(SHAPE, mean=1000)
    exact, _ = pair(SHAPE, dtype="float64")
    expected = exact(tf.cast(inputs, tf.float64), training=True)
    for layer in pair(SHAPE):
        outputs, *_ = results(layer, inputs, True, jit_compile=jit_compile)
        assert_close([outputs], [expected], 1e-3)
        assert_close([layer.moving_variance], [exact.moving_variance])


def test_sizes_may_be_unknown():
    images = keras.Input((None, None, 3))
    model = keras.Model(images, FusedBatchNormalization(name="norm")(images))
    theirs, _ = pair(SHAPE)
    model.set_weights(theirs.get_weights())
    unknown = tf.TensorSpec((None, None, None, 3), tf.float32)
    assert is_fused(model, unknown, training=True)
    step = tf.function(lambda x: model(x, training=True), input_signature=[unknown])
    inputs = drawn(SHAPE)
    assert_close([step(inputs)], [theirs(inputs, training=True)])
    assert_close(model.get_weights(), theirs.get_weights())


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 5), {}),
        ((8, 5, 3), {}),
        ((2, 3, 4, 5, 3), {}),
        (SHAPE, {"axis": 1}),
        (SHAPE, {"renorm": True}),
        (SHAPE, {"dtype": "float64"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_other_inputs_are_left_to_keras(shape, options, training):
    theirs, ours = pair(shape, **options)
    inputs = drawn(shape, dtype=options.get("dtype", "float32"))
    assert not is_fused(ours, inputs, training=training)
    assert_equal(results(ours, inputs, training), results(theirs, inputs, training))


def test_masked_inputs_are_left_to_keras():
    theirs, ours = pair(SHAPE)
    inputs, mask = drawn(SHAPE), drawn(SHAPE[:3], seed=4) > 0
    assert not is_fused(ours, inputs, training=True, mask=mask)
    found, expected = (layer(inputs, training=True, mask=mask) for layer in (ours, theirs))
    assert_equal([found, *ours.weights], [expected, *theirs.weights])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_xla_gives_the_same(shape, training):
    theirs, ours = pair(shape)
    inputs = drawn(shape)
    compiled = results(ours, inputs, training, jit_compile=True)
    assert_close(compiled, results(theirs, inputs, training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_bits_are_the_same_each_time(dtype, training):
    session.prepare(seed=1, deterministic=True)
    shape = (32, 32, 32, 16)
    runs = []
    for _ in range(5):
        _, ours = pair(shape, dtype=dtype)
        inputs = drawn(shape, dtype=ours.compute_dtype)
        runs.append(results(ours, inputs, training, traced=True))
    for run in runs[1:]:
        assert_equal(run, runs[0])


TWO_REPLICAS = """
import sys
from cnnbench.backend.lazy import load, tf
load()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
from test_fast_layers import *

strategy = session.strategy("mirrored")
halves = tf.split(drawn((8, 5, 7, 3)), 2)
distributed = strategy.experimental_distribute_values_from_function(
    lambda context: halves[context.replica_id_in_sync_group]
)

def step(layer):
    @tf.function
    def run(inputs):
        return strategy.run(lambda x: layer(x, training=True), [inputs])
    graph = run.get_concrete_function(distributed).graph.as_graph_def()
    outputs = strategy.experimental_local_results(run(distributed))
    return "FusedBatchNormV3" in str(graph), [*outputs, *layer.get_weights()]

for synchronized in (True, False):
    with strategy.scope():
        theirs, ours = pair(SHAPE, synchronized=synchronized)
    fused, found = step(ours)
    assert fused is not synchronized
    assert_close(found, step(theirs)[1])
    if synchronized:
        _, whole = pair(SHAPE)
        whole(tf.concat(halves, 0), training=True)
        assert_close(ours.get_weights(), whole.get_weights())
"""


def test_replicas_that_share_statistics_leave_them_to_keras(request):
    command = [sys.executable, "-c", TWO_REPLICAS, str(request.path.parent)]
    subprocess.run(command, check=True)


def test_synchronized_on_one_device_is_fused():
    theirs, ours = pair(SHAPE, synchronized=True)
    inputs = drawn(SHAPE)
    assert is_fused(ours, inputs, training=True)
    assert_close(results(ours, inputs, True), results(theirs, inputs, True))


def test_config_round_trip():
    theirs, ours = pair(SHAPE, momentum=0.7, epsilon=1e-4, center=False)
    assert ours.get_config() == theirs.get_config()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours))
    assert type(again) is FusedBatchNormalization
    assert again.get_config() == ours.get_config()


def built(name, **options):
    """Returns a network whose moving means are not zero."""
    model = build_model(MODELS.spec(name, **options), (32, 32, 3), 10)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms and all(isinstance(x, FusedBatchNormalization) for x in norms)
    for norm in norms:
        norm.moving_mean.assign(drawn(norm.moving_mean.shape) / 10)
    return model


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_plain_copy_needs_keras_alone(name, tmp_path):
    model = built(name)
    model.layers[-3].trainable = False
    copy = plain(model)
    assert "Fused" in model.to_json() and "Fused" not in copy.to_json()
    assert [(x.name, x.trainable) for x in copy.layers] == [
        (x.name, x.trainable) for x in model.layers
    ]
    assert [x.path for x in copy.weights] == [x.path for x in model.weights]
    assert_equal(copy.get_weights(), model.get_weights())
    copy.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = drawn((2, 32, 32, 3))
    expected = model(images, training=False)
    assert_close([again(images, training=False)], [expected], 1e-4)


def test_a_plain_copy_of_a_model_in_a_model():
    images = keras.Input((32, 32, 3))
    inner = built("resnet20")
    copy = plain(keras.Model(images, inner(images)))
    assert "Fused" not in copy.to_json()
    assert_equal(copy.get_weights(), inner.get_weights())


def test_a_network_trains_as_with_keras():
    # The last bit of a number decides whether a ReLU, whose slope jumps, passes its gradient on.
    model = built("resnet20", activation="elu")
    copy = plain(model)
    images, labels = drawn((16, 32, 32, 3)), tf.range(16) % 10

    def step(model):
        @tf.function
        def run():
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                loss = tf.reduce_mean(losses)
            variables = [variable.value for variable in model.trainable_variables]
            return [logits, loss, *tape.gradient(loss, variables)]

        return [*run(), *model.get_weights()]

    assert_close(step(model), step(copy))


def test_tflite_folds_it_into_the_convolution():
    from ai_edge_litert.interpreter import Interpreter

    images = keras.Input((8, 8, 3), batch_size=1)
    x = keras.layers.Conv2D(4, 3, use_bias=False)(images)
    norm = FusedBatchNormalization()
    model = keras.Model(images, keras.layers.ReLU()(norm(x)))
    norm.moving_mean.assign(drawn(4))
    interpreter = Interpreter(
        model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert()
    )
    assert {x["op_name"] for x in interpreter._get_ops_details()} == {"CONV_2D"}
    runner = interpreter.get_signature_runner()
    inputs = drawn((1, 8, 8, 3))
    (outputs,) = runner(**{images.name: inputs}).values()
    assert_close([outputs], [model(inputs)])


@pytest.mark.parametrize(
    ("groups", "channels", "filters", "options"),
    [
        (1, 8, 6, {"kernel_size": 1}),
        (1, 8, 6, {"kernel_size": 1, "strides": 2, "padding": "same", "use_bias": False}),
        (1, 8, 6, {"kernel_size": 1, "strides": 3}),
        (1, 8, 6, {"padding": "same"}),
        (2, 8, 6, {}),
        (8, 32, 32, {"strides": 2}),
        (6, 24, 12, {"padding": "same", "use_bias": False}),
        (4, 4, 8, {"padding": "same"}),
        (2, 80, 48, {"strides": 2, "padding": "same"}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_bfloat16"])
def test_convolutions_are_those_of_keras(groups, channels, filters, options, dtype):
    kinds = (keras.layers.Conv2D, FastConv2D)
    options = {"filters": filters, "kernel_size": 3, "groups": groups, "dtype": dtype} | options
    theirs, ours = (kind(name="conv", **options) for kind in kinds)
    x = drawn((2, 9, 8, channels), dtype="float64" if dtype == "float64" else "float32")
    theirs(x), ours(x)
    ours.set_weights(theirs.get_weights())
    found = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = tf.cast(layer(x), x.dtype)
            loss = tf.reduce_sum(outputs * drawn(outputs.shape, seed=5, dtype=x.dtype))
        variables = [variable.value for variable in layer.trainable_weights]
        found.append([outputs, *tape.gradient(loss, [x, *variables])])
    close = {"float32": 1e-5, "float64": 1e-12, "mixed_bfloat16": 3e-2}[dtype]
    for own, other in zip(*found, strict=True):
        own, other = np.asarray(own, np.float64), np.asarray(other, np.float64)
        assert np.abs(own - other).max() <= close * np.abs(other).max()
    assert FastConv2D.from_config(ours.get_config()).get_config() == theirs.get_config()


def test_a_kernel_of_one_pixel_takes_images_of_any_size():
    images = keras.Input((None, None, 3))
    model = keras.Model(images, FastConv2D(4, 1, 2)(images))
    step = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    inputs = drawn((2, 5, 4, 3))
    assert_close([step(inputs)], [plain(model)(inputs)])


def test_a_network_of_groups_needs_keras_alone_in_its_plain_copy():
    model = build_model("resnext50_32x4d", (32, 32, 3), 10)
    assert any(isinstance(layer, FastConv2D) for layer in model.layers)
    copy = plain(model)
    assert {type(layer).__module__.partition(".")[0] for layer in copy.layers} == {"keras"}
    images = drawn((2, 32, 32, 3))
    assert_close([model(images, training=False)], [copy(images, training=False)], 1e-4)
