"""Quantization: against formulas written out in NumPy, and TFLite's integers against our floats."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from cnnbench.backend import session
from cnnbench.backend.lazy import keras
from cnnbench.compression.fake_quant import DECAY, FixedRange, MovingRange, on_grid
from cnnbench.compression.quantize import (
    calibrate,
    fake_quantized,
    fold_batch_norms,
    is_fake_quantized,
    quantizable,
)
from cnnbench.data.preprocess import COLOR_STATISTICS, Preprocess
from cnnbench.errors import UsageError, VerificationError
from cnnbench.exports.formats import tflite_file, tflite_trained
from cnnbench.models.build import build_model
from cnnbench.registry.kinds import MODELS, min_size
from cnnbench.runs import variables
from cnnbench.tasks.task import task_named

slow = pytest.mark.slow
# A small variant of each family.
FAMILIES = [
    ("airbench94", {"width": 0.25}),
    ("alexnet", {"stem": "cifar"}),
    ("densenet_bc_40_12", {}),
    pytest.param("efficientnet_b0", {"stem": "cifar"}, marks=slow),
    pytest.param("efficientnet_lite0", {"stem": "cifar"}, marks=slow),
    pytest.param("efficientnet_v2_b0", {"stem": "cifar"}, marks=slow),
    ("lenet5", {}),
    # Depthwise convolutions and their norms are in the second version too.
    pytest.param("mobilenet_v1_025", {"stem": "cifar"}, marks=slow),
    ("mobilenet_v2", {"stem": "cifar", "alpha": 0.25}),
    ("mobilenet_v3_small", {"stem": "cifar", "alpha": 0.25}),
    pytest.param("nasnet_cifar", {}, marks=slow),
    ("resnet8", {"se_ratio": 0.25}),
    pytest.param("resnet50", {"stem": "deep"}, marks=slow),
    pytest.param("resnet164v2", {}, marks=slow),
    pytest.param("resnext50_32x4d", {"stem": "cifar"}, marks=slow),
    ("vgg11_bn", {"head": "pool"}),
    # Its norms stand alone before convolutions, as those of DenseNet do.
    pytest.param("wide_resnet40_2", {}, marks=slow),
]


@pytest.fixture(autouse=True)
def clean_keras():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    yield
    keras.utils.clear_session()


def normals(shape, seed=1, dtype="float32"):
    return tf.random.stateless_normal(shape, (seed, 2), dtype=dtype)


def built(name, options=None, size=None, channels=3):
    """Returns a network whose batch norms have the statistics of normal images, and learned."""
    spec = MODELS.spec(name, **(options or {}))
    size = size or min_size(spec)
    model = build_model(spec, (size, size, channels), 10)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    random = np.random.default_rng(0)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.beta.assign(random.normal(0, 0.3, norm.beta.shape))
        if norm.scale:
            norm.gamma.assign(random.uniform(0.5, 1.5, norm.gamma.shape))
    model(normals((8, size, size, channels), dtype=model.compute_dtype), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def small_net(*layers, shape=(8, 8, 3)):
    x = images = keras.Input(shape, name="images")
    for layer in layers:
        x = layer(x)
    return keras.Model(images, x, name="small")


# Rounding


def rounded(x, low, high, bits=8):
    """Jacob et al. 2018, equation 12, with the range moved so that 0 is on the grid."""
    scale = (high - low) / (2**bits - 1)
    zero = np.clip(np.floor(-low / scale + 0.5), 0, 2**bits - 1)
    q = np.floor(np.clip(x, -zero * scale, (2**bits - 1 - zero) * scale) / scale + zero + 0.5)
    return (q - zero) * scale


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 3, 4, 6), (0, 1, 2)), ((3, 3, 4, 2), (0, 1)), ((20, 7), (0,))]
)
def test_kernels_are_rounded_symmetrically_by_channel(shape, axes, bits):
    kernel = normals(shape) * tf.exp(normals(shape[-1:], seed=3))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        out = on_grid(kernel, bits, axes)
        loss = tf.reduce_sum(out * normals(shape, seed=5))
    w, most = kernel.numpy().astype(np.float64), 2 ** (bits - 1) - 1
    scale = np.abs(w).max(axes, keepdims=True) / most
    assert np.allclose(out, np.round(w / scale) * scale, rtol=1e-6, atol=1e-9)
    integers = np.round(out / scale)
    assert np.all(np.abs(integers).max(axes) == most)
    assert np.array_equal(tape.gradient(loss, kernel), normals(shape, seed=5))


def test_a_channel_of_zeros_stays_so():
    kernel = tf.concat([tf.zeros((3, 3, 2, 1)), normals((3, 3, 2, 1))], -1)
    assert np.all(on_grid(kernel, 8, (0, 1, 2))[..., 0] == 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 6.0), (-3.3, 0.1), (-1.0, 127 / 128)])
def test_activations_are_rounded_in_their_range(low, high, bits):
    x = tf.linspace(low - 1, high + 1, 1001)
    moving = MovingRange(bits=bits)
    moving.build(None)
    moving.minimum.assign([low]), moving.maximum.assign([high])
    for layer in (FixedRange(low, high, bits=bits), moving):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
        expected = rounded(x.numpy().astype(np.float64), low, high, bits)
        # Where a value lies half between two, the last bit of a float32 decides.
        step = (high - low) / (2**bits - 1)
        differs = np.abs(out - expected) > 1e-5
        assert differs.mean() < 0.01 and np.abs(out - expected).max() < 1.001 * step
        assert 0 in out.numpy() and len(np.unique(out)) == 2**bits
        inside = (x >= out.numpy().min()) & (x <= out.numpy().max())
        assert np.array_equal(tape.gradient(out, x), inside.numpy().astype(np.float32))


def test_a_range_is_the_moving_average_of_extremes_and_zero():
    layer = MovingRange()
    batches = [normals((4, 5), seed=i) + 3.0 * (i % 2) for i in range(6)]
    low = high = None
    for batch in batches:
        layer(batch, training=True, member=0)
        least, most = min(np.min(batch), 0), max(np.max(batch), 0)
        low = least if low is None else DECAY * low + (1 - DECAY) * least
        high = most if high is None else DECAY * high + (1 - DECAY) * most
        assert [float(end) for end in layer.range()] == pytest.approx([low, high], rel=1e-5)
    layer(100 * batches[0], member=0)
    layer(100 * batches[0], training=True)
    assert [float(end) for end in layer.range()] == pytest.approx([low, high], rel=1e-5)
    assert not layer.trainable_variables and len(layer.variables) == 2


def test_a_range_holds_zero_and_is_zero_alone_at_first():
    layer = MovingRange()
    assert np.all(layer(tf.ones(3), member=0) == 0)
    layer(tf.constant([2.0, 3.0]), training=True, member=0)
    assert [float(end) for end in layer.range()] == [0, 3]


def test_members_share_the_union_of_their_ranges():
    layer = MovingRange(members=2)
    layer(tf.constant([-1.0, 2.0]), training=True, member=0)
    layer(tf.constant([-3.0, 1.0]), training=True, member=1)
    layer(tf.constant([-1.0, 4.0]), training=True, member=0)
    assert np.allclose(layer.minimum, [-1, -3])
    assert np.allclose(layer.maximum, [DECAY * 2 + (1 - DECAY) * 4, 1])
    out = layer(tf.constant([-9.0, 9.0]))
    assert np.allclose(out, rounded(np.array([-9, 9]), -3, 2 * DECAY + 4 * (1 - DECAY)), atol=1e-6)


TWO_REPLICAS = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from cnnbench.compression.fake_quant import DECAY, MovingRange
with strategy.scope():
    layer = MovingRange()
    layer.build(None)
def step():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    x = tf.constant([-1.0, 2.0]) * (1.0 + 2.0 * tf.cast(replica, tf.float32))
    layer(x, training=True, member=0)
run = tf.function(lambda: strategy.run(step))
run(), run()
assert [float(end) for end in layer.range()] == [-2, 4], layer.range()
"""


@pytest.mark.slow
def test_replicas_take_the_mean_of_their_ranges():
    subprocess.run([sys.executable, "-c", TWO_REPLICAS], check=True)


# Folding


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_every_family_can_be_quantized_and_folding_changes_nothing(name, options):
    # The first kernels of airbench are float32 under any policy.
    with session.precision("float32" if name == "airbench94" else "float64"):
        model = built(name, options)
        folded = fold_batch_norms(model)
    kinds = [type(layer).__name__ for layer in folded.layers]
    assert not [kind for kind in kinds if "BatchNormalization" in kind]
    assert quantizable(model) == quantizable(folded) == []
    images = normals((4, *model.input_shape[1:]), seed=3, dtype=model.compute_dtype)
    expected, found = model(images, training=False).numpy(), folded(images, training=False).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    alone = [layer for layer in folded.layers if layer.name.endswith(("norm", "norm1", "norm2"))]
    assert bool(alone) == name.startswith(("airbench", "densenet", "wide", "resnet164v2"))


def test_only_a_norm_that_alone_takes_an_output_becomes_part_of_what_gives_it():
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(3, 1, name="conv")(images)
    y = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(images, keras.layers.Add(name="add")([x, y]))
    model.get_layer("norm").moving_mean.assign([1.0, 2.0, 3.0])
    folded = fold_batch_norms(model)
    assert isinstance(folded.get_layer("norm"), keras.layers.DepthwiseConv2D)
    x = normals((2, 8, 8, 3))
    assert np.allclose(folded(x), model(x), atol=1e-5)
    assert np.array_equal(
        folded.get_layer("conv").kernel.numpy(), model.get_layer("conv").kernel.numpy()
    )


# Fake quantization of networks


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("alexnet", {"stem": "cifar", "lrn": True}, "stage1_lrn (LocalResponseNormalization)"),
        ("resnet8", {"activation": "elu"}, "stem_act (elu)"),
        ("resnet8", {"activation": "prelu"}, "stem_act (PReLU)"),
    ],
)
def test_what_cannot_be_quantized_is_named(name, options, problem):
    model = build_model(MODELS.spec(name, **options), (32, 32, 3), 10)
    assert quantizable(model)[0] == problem
    with pytest.raises(UsageError, match=name):
        fake_quantized(model)


def test_a_fixed_range_cannot_be_shared():
    images = keras.Input((8, 8, 3), name="images")
    gate = keras.layers.Activation("sigmoid", name="gate")(images)
    both = keras.layers.Concatenate()([images, gate])
    model = keras.Model(images, both)
    assert quantizable(model) == ["gate (sigmoid in a concatenation)"]


def ranges_of(model):
    return [x.name for x in model.layers if isinstance(x, MovingRange | FixedRange)]


def test_ranges_are_where_integers_are():
    model = fake_quantized(built("resnet8"))
    assert is_fake_quantized(model) and not is_fake_quantized(fold_batch_norms(built("resnet8")))
    expected = ["images", "stem_act"]
    for stage in (1, 2, 3):
        expected += [f"stage{stage}_block1_{part}" for part in ("act1", "conv2", "act2")]
    expected += ["head_pool", "logits"]
    assert ranges_of(model) == [f"{name}_range" for name in expected]


def test_a_known_output_has_a_known_range():
    lenet = fake_quantized(built("lenet5", channels=1))
    tanh = lenet.get_layer("stage1_act_range")
    assert (tanh.minimum, tanh.maximum) == (-1, 127 / 128)
    swish = fake_quantized(built("resnet8", {"activation": "swish"}))
    gate = swish.get_layer("stem_act_gate_range")
    assert (gate.minimum, gate.maximum) == (0, 255 / 256)
    assert "stem_act_range" in ranges_of(swish) and "stem_conv_range" in ranges_of(swish)


def dense_net():
    """Returns two dense layers: what the first appends, the second takes and appends to."""
    x = images = keras.Input((8, 8, 3), name="images")
    for i in (1, 2):
        new = keras.layers.Conv2D(2, 3, padding="same", name=f"conv{i}")(x)
        x = keras.layers.Concatenate(name=f"concat{i}")([x, new])
        x = keras.layers.Dropout(0.1, name=f"dropout{i}")(x)
    x = keras.layers.AveragePooling2D(2, name="pool")(x)
    x = keras.layers.Conv2D(4, 1, name="head")(x)
    return keras.Model(images, keras.layers.Flatten(name="logits")(x), name="dense")


def test_what_is_concatenated_shares_a_range():
    model = fake_quantized(dense_net())
    assert ranges_of(model) == ["images_range", "head_range"]
    shared = model.get_layer("images_range")
    assert shared.members == 3
    images = normals((4, 8, 8, 3))
    calibrate(model, [images])
    low, high = shared.minimum.numpy(), shared.maximum.numpy()
    assert (low[0], high[0]) == (np.min(images), np.max(images))
    assert len(set(low)) == len(set(high)) == 3
    pooled = keras.Model(model.input, model.get_layer("head").input)(images)
    step = float(high.max() - low.min()) / 255
    # The mean of four values is rounded like each of them.
    assert np.allclose(pooled / step, np.round(pooled / step), atol=1e-3)


def test_the_layers_of_a_stage_share_a_range():
    model = fake_quantized(built("densenet_bc_40_12"))
    shared = [x for x in model.layers if isinstance(x, MovingRange) and x.members > 1]
    assert [layer.members for layer in shared] == [7, 7, 7]


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet8", {}), ("resnet8", {"activation": "hard_swish", "se_ratio": 0.25})],
)
def test_quantizing_changes_little(name, options):
    model = built(name, options)
    quantized = fake_quantized(model)
    images = normals((16, *model.input_shape[1:]))
    calibrate(quantized, [images])
    expected, found = model(images, training=False), quantized(images, training=False)
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    more = fake_quantized(model, bits=12)
    calibrate(more, [images])
    error = np.abs(more(images, training=False) - expected).max()
    assert error < 0.2 * np.abs(found - expected).max()


def test_calibration_takes_the_mean_range_of_the_batches():
    model = built("resnet8", {"dropout": 0.9})
    quantized = fake_quantized(model)
    weights = quantized.get_layer("stem_conv").get_weights()
    batches = [normals((4, *model.input_shape[1:]), seed) * (seed + 1) for seed in range(3)]
    for _ in range(2):  # from where it was or anew
        calibrate(quantized, batches)
        low, high = quantized.get_layer("images_range").range()
        assert float(low) == pytest.approx(np.mean([np.min(x) for x in batches]), rel=1e-5)
        assert float(high) == pytest.approx(np.mean([np.max(x) for x in batches]), rel=1e-5)
    before = quantized.get_weights()
    quantized(batches[2] * 9, training=False)
    for own, other in zip(before, quantized.get_weights(), strict=True):
        assert np.array_equal(own, other)
    assert np.array_equal(quantized.get_layer("stem_conv").get_weights()[0], weights[0])


def test_the_same_architecture_is_made_of_random_weights(tmp_path):
    options = {"activation": "swish", "se_ratio": 0.25, "dropout": 0.1}
    first = fake_quantized(built("resnet8", options))
    keras.utils.clear_session()  # which names the states of dropout by their count
    second = fake_quantized(built("resnet8", options))
    images = normals((4, *first.input_shape[1:]))
    calibrate(first, [images])
    named, other = (variables.variables_by_name("model", m.variables) for m in (first, second))
    assert list(named) == list(other)
    variables.assign(other, {name: v.numpy() for name, v in named.items()}, tmp_path)
    assert np.array_equal(first(images, training=False), second(images, training=False))


@pytest.mark.parametrize("build", [dense_net, lambda: built("lenet5")])
def test_serialisation_round_trip(build, tmp_path):
    model = fake_quantized(build())
    images = normals((2, *model.input_shape[1:]))
    calibrate(model, [images])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(model(images, training=False), again(images, training=False))


def test_a_frozen_weight_stays_frozen():
    model = built("airbench94", {"width": 0.1})
    quantized = fake_quantized(model)
    assert "stem_whiten/kernel" not in {v.path for v in quantized.trainable_variables}
    assert "stem_whiten/bias" in {v.path for v in quantized.trainable_variables}


# Training, on handwritten digits


@pytest.fixture(scope="module")
def digits():
    """Normalised images of 16x16 pixels and their labels: of training, and of testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    images = (images.repeat(2, 1).repeat(2, 2) - 0.3) / 0.38
    return (images[:1500], labels[:1500]), (images[1500:], labels[1500:])


def trained(model, data, epochs, rate=2e-3):
    images, labels = data
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1500, seed=1)
    return [float(step(*batch)) for batch in batches.batch(50).repeat(epochs)]


def top1(model, data):
    return float(np.mean(np.argmax(model(data[0], training=False), -1) == data[1]))


@pytest.fixture(scope="module")
def quantized_digits(digits):
    """A small ResNet trained on digits, in floats and then as its integers will compute."""
    keras.utils.set_random_seed(0)
    train, test = digits
    model = built("resnet8", size=16, channels=1)
    trained(model, train, 4)
    quantized = fake_quantized(model)
    losses = trained(quantized, train, 1, rate=2e-4)
    assert min(top1(model, test), top1(quantized, test)) > 0.9
    assert np.mean(losses[-10:]) < 0.2
    return quantized


def test_training_reaches_every_weight_and_range(quantized_digits):
    model = quantized_digits
    weights = [v for v in model.trainable_variables if v.name == "kernel"]
    assert len(weights) == 10 - 2  # the shortcuts have none
    for layer in model.layers:
        if isinstance(layer, MovingRange):
            low, high = layer.range()
            assert low <= 0 < high
    images = normals((4, 16, 16, 1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(gradient is not None and np.any(gradient) for gradient in gradients)


# TFLite


def interpreter_of(content, **options):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, **options)
    interpreter.allocate_tensors()
    return interpreter


def as_integers(images, interpreter):
    (detail,) = interpreter.get_input_details()
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(images / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def tflite_int8(model, **options):
    serve = partial(task_named("classification").serve, loss="cross_entropy")
    return tflite_trained.tflite_int8(model, serve=serve, **options)


def outputs_of(interpreter, images):
    """The outputs by their names, as the integers stand for them."""
    run = interpreter.get_signature_runner()
    scales = {name: each["quantization"] for name, each in run.get_output_details().items()}
    rows = [run(images=image[None]) for image in images]
    return {
        name: scale * (np.concatenate([row[name] for row in rows]).astype(np.float32) - zero)
        for name, (scale, zero) in scales.items()
    }


def logits_of(interpreter, images):
    return outputs_of(interpreter, images)["logits"]


def logit_step(model):
    low, high = model.layers[-1].range()
    return float(high - low) / 255


def check_ranges(model, content):
    """Every range of ours is a scale and a zero point in the file, and every kernel has its own."""
    details = interpreter_of(content).get_tensor_details()
    found = [
        (d["quantization"][0], d["quantization"][1])
        for d in details
        if d["dtype"] == np.int8 and len(d["quantization_parameters"]["scales"]) == 1
    ]
    for layer in model.layers:
        if isinstance(layer, MovingRange):
            low, high = (float(end) for end in layer.range())
            scale = (high - low) / 255
            zero = round(-low / scale) - 128
            assert any(np.isclose(s, scale, rtol=1e-6) and z == zero for s, z in found), layer.name
    kernels = [d["quantization_parameters"]["scales"] for d in details if d["dtype"] == np.int8]
    for layer in model.layers:
        if hasattr(layer, "kernel_on_grid"):
            w = np.abs(layer.kernel.numpy())
            scales = (w.max(layer.axes) / 127).ravel()
            assert any(
                k.shape == scales.shape and np.allclose(k, scales, rtol=1e-5) for k in kernels
            ), layer.name


def test_a_trained_network_in_integers(quantized_digits, digits):
    images, labels = digits[1]
    content = tflite_int8(quantized_digits, pixel_shape=(16, 16, 1))
    check_ranges(quantized_digits, content)
    interpreter = interpreter_of(content)
    found = logits_of(interpreter, as_integers(images, interpreter))
    expected = quantized_digits(images, training=False).numpy()
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert np.abs(found - expected).mean() < logit_step(quantized_digits)
    assert np.abs(found - expected).max() <= 6 * logit_step(quantized_digits)
    assert (found.argmax(1) == labels).mean() > 0.9


def test_the_file_takes_pixels_and_holds_integers_alone(quantized_digits):
    prepare = Preprocess("grey", (0.3,), (0.38,))
    content = tflite_int8(quantized_digits, pixel_shape=(16, 16, 1), preprocess=prepare)
    interpreter = interpreter_of(content)
    (detail,) = interpreter.get_input_details()
    assert detail["dtype"] == np.uint8 and detail["quantization"] == (1.0, 0)
    kinds = {d["dtype"] for d in interpreter.get_tensor_details()}
    assert kinds <= {np.uint8, np.int8, np.int32}
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 1), np.uint8)
    scales = {d["name"]: d["quantization"] for d in interpreter.get_output_details()}
    assert sorted(scale for scale, _ in scales.values()) == pytest.approx(
        sorted([1 / 256, logit_step(quantized_digits)]), rel=1e-6
    )
    out = interpreter.get_signature_runner()(images=pixels[:1])
    assert set(out) == {"logits", "probabilities"} and out["probabilities"].dtype == np.uint8
    found = outputs_of(interpreter, pixels)
    expected = quantized_digits(prepare(pixels), training=False).numpy()
    assert np.abs(found["logits"] - expected).max() <= 6 * logit_step(quantized_digits)
    softmax = tf.nn.softmax(found["logits"]).numpy()
    assert np.abs(found["probabilities"] - softmax).max() <= 2 / 256


@pytest.mark.parametrize(
    ("color", "stored"),
    [("rgb", 3), ("rgb", 1), ("grey", 3), ("grey", 1), ("yuv", 3), ("bgr", 3)],
)
def test_preprocessing_is_a_convolution_in_integers(color, stored):
    mean, std = COLOR_STATISTICS[color]
    prepare = Preprocess(color, mean, std)
    channels = 1 if color == "grey" else 3
    model = fake_quantized(small_net(keras.layers.Flatten(name="logits"), shape=(4, 4, channels)))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 4, 4, stored), np.uint8)
    calibrate(model, [prepare(pixels)])
    content = tflite_int8(model, pixel_shape=(4, 4, stored), preprocess=prepare)
    found = logits_of(interpreter_of(content), pixels)
    expected = model(prepare(pixels), training=False).numpy()
    low, high = model.get_layer("images_range").range()
    # The weights of a colour are rounded to 1 / 254 of the largest.
    error = 2 if color in ("rgb", "bgr") or stored == 1 else 4
    assert np.abs(found - expected).max() <= error * float(high - low) / 255 + 1e-5


def test_what_has_no_integers_is_refused(quantized_digits):
    hsv = Preprocess("hsv", (0.5,) * 3, (0.25,) * 3)
    model = fake_quantized(built("resnet8"))
    shape = model.input_shape[1:]
    with pytest.raises(UsageError, match="has no ranges"):
        tflite_int8(model, pixel_shape=shape)
    calibrate(model, [normals((2, *shape))])
    with pytest.raises(UsageError, match="not linear"):
        tflite_int8(model, pixel_shape=shape, preprocess=hsv)
    model = fake_quantized(built("resnet8"), bits=4)
    calibrate(model, [normals((2, *shape))])
    with pytest.raises(UsageError, match="4 bits"):
        tflite_int8(model, pixel_shape=shape)


def test_a_file_that_computes_in_floats_is_not_let_through():
    model = fake_quantized(small_net(keras.layers.Flatten(), keras.layers.Dense(4, name="logits")))
    calibrate(model, [normals((2, 8, 8, 3))])
    bent = keras.Model(model.input, keras.layers.Activation("elu", name="bent")(model.output))
    with pytest.raises(VerificationError, match="would compute in floats"):
        tflite_int8(bent, pixel_shape=(8, 8, 3))


@pytest.mark.parametrize("size", [1e-12, 0.3])
def test_channels_of_other_sizes_have_their_own_scales(size):
    """Equal biases too, which the converter has one scale for, and biases far above the kernel."""
    conv = keras.layers.Conv2D(3, 3, bias_initializer=keras.initializers.Constant(0.5))
    depthwise = keras.layers.DepthwiseConv2D(3, bias_initializer=keras.initializers.Constant(-0.5))
    dense = keras.layers.Dense(5, bias_initializer=keras.initializers.Constant(0.25))
    model = small_net(conv, depthwise, keras.layers.Flatten(), dense)
    conv.kernel.assign(conv.kernel * tf.constant([size, 1, 1]))
    depthwise.kernel.assign(depthwise.kernel * tf.constant([1, size, 1])[:, None])
    dense.kernel.assign(dense.kernel * tf.constant([1, 1, 1, size, 1]))
    quantized = fake_quantized(model)
    images = normals((16, 8, 8, 3))
    calibrate(quantized, [images])
    interpreter = interpreter_of(tflite_int8(quantized, pixel_shape=(8, 8, 3)))
    found = logits_of(interpreter, as_integers(images, interpreter))
    difference = np.abs(found - quantized(images, training=False))
    assert difference.max() <= 4 * logit_step(quantized)


# Each layer rounds what the one before has rounded, and the errors of fifty of them add up in the
# logits: `steps` is how far these may be from ours in the mean, in steps of their own scale, and
# `agreement` the share of images whose class is the same at least. Measured were 98.7 % and 2.0
# steps (DenseNet), 98.3 % and 2.4 (MobileNetV2) and 99.3 % and 1.1 (MobileNetV3).
@pytest.mark.parametrize(
    ("name", "options", "size", "epochs", "rate", "agreement", "steps"),
    [
        ("lenet5", {}, 16, 4, 2e-3, 0.98, 2),
        pytest.param("densenet_bc_40_12", {}, 16, 4, 4e-3, 0.97, 4, marks=slow),
        pytest.param("efficientnet_b0", {"stem": "cifar"}, 16, 4, 2e-3, 0.98, 2, marks=slow),
        pytest.param(
            "mobilenet_v2", {"stem": "cifar", "alpha": 0.25}, 16, 10, 4e-3, 0.97, 4, marks=slow
        ),
        pytest.param(
            "mobilenet_v3_small", {"stem": "cifar", "alpha": 0.5}, 16, 8, 4e-3, 0.98, 2, marks=slow
        ),
        pytest.param("vgg11_bn", {"head": "pool"}, 32, 4, 2e-3, 0.98, 2, marks=slow),
    ],
)
def test_integers_name_the_classes_that_floats_name(
    digits, name, options, size, epochs, rate, agreement, steps
):
    (images, labels), (unseen, answers) = digits
    if size == 32:
        images, unseen = (x.repeat(2, 1).repeat(2, 2) for x in (images, unseen))
    model = built(name, options, size, channels=1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Those of ImageNet follow too slowly for a few hundred steps.
            layer.momentum = min(layer.momentum, 0.9)
    trained(model, (images, labels), epochs, rate)
    quantized = fake_quantized(model)
    calibrate(quantized, [images[i : i + 100] for i in range(0, 500, 100)])
    trained(quantized, (images, labels), 1, rate=1e-4)
    # A network that knows little names classes by chance, and another one by a bit.
    assert top1(quantized, (unseen, answers)) > 0.8
    content = tflite_int8(quantized, pixel_shape=(size, size, 1))
    check_ranges(quantized, content)
    interpreter = interpreter_of(content)
    found = logits_of(interpreter, as_integers(unseen, interpreter))
    expected = quantized(unseen, training=False).numpy()
    assert (found.argmax(1) == expected.argmax(1)).mean() >= agreement
    assert np.abs(found - expected).mean() <= steps * logit_step(quantized)
    right = [(each.argmax(1) == answers).mean() for each in (found, expected)]
    assert right[0] >= right[1] - 0.02


@pytest.mark.parametrize(("name", "options"), [("resnet20", {})])
def test_the_file_is_small_and_has_no_operations_but_the_networks(name, options):
    model = fake_quantized(built(name, options, 32))
    calibrate(model, [normals((2, 32, 32, 3))])
    content = tflite_file.compact(tflite_int8(model, pixel_shape=(32, 32, 3)))
    floats = 4 * sum(np.prod(v.shape) for v in model.trainable_variables)
    # Of the weights alone; the float32 file has names and a graph besides, a hundredth more.
    assert len(content) < 0.272 * floats
    operations = [x["op_name"] for x in interpreter_of(content)._get_ops_details()]
    kinds = {name: operations.count(name) for name in set(operations) - {"DELEGATE"}}
    assert kinds == {
        "CONV_2D": 19,
        "ADD": 9,
        "PAD": 4,
        "AVERAGE_POOL_2D": 2,
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
        "SOFTMAX": 1,
    }
