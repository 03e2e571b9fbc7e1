"""What goes on around the optimizer, against its formulas: on a network of one layer, mostly."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

from cnnbench import load_recipe
from cnnbench.backend.lazy import keras, tf
from cnnbench.backend.settings import Choice, Settings
from cnnbench.data.open import Access
from cnnbench.errors import RecipeError, UsageError
from cnnbench.models.build import build_model
from cnnbench.runs.create import commit, new_run
from cnnbench.training.averages import slow_weights
from cnnbench.training.callbacks import Callbacks
from cnnbench.training.learner import Learner
from cnnbench.training.one_stage import fit
from cnnbench.training.optimizer import build_optimizer
from cnnbench.training.smoke import smoke
from cnnbench.training.state import State
from cnnbench.training.steps import at_size, training_steps

FEATURES, CLASSES, BATCH, LR = 5, 3, 12, 0.5
PLAIN = ("optimizer={name: sgd, lr: 0.5}", f"data.batch_size={BATCH}", "regularization.l2=0.0")
TECHNIQUES = {
    "clip": "train.gradient_clip={norm: 0.1}",
    "accumulate": "train.accumulate=3",
    "sam": "train.sam={rho: 0.1}",
    "lookahead": "train.lookahead={every: 2}",
    "groups": "train.groups=[{match: bias, lr_scale: 4.0}]",
}


@pytest.fixture
def recipe(small):
    """A function of settings to a recipe whose loss is plain cross-entropy."""

    def load(*settings):
        return load_recipe(small, (*PLAIN, *settings))

    return load


def linear():
    """Softmax regression with known weights."""
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(inputs))
    rng = np.random.default_rng(5)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def deep(dropout=0.5):
    """A network with the state that is no weight: statistics and a random generator."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="stem_dense")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, name="stem_norm")(x)
    x = keras.layers.Dropout(dropout, seed=3, name="stem_dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x))


def batches(count):
    rng = np.random.default_rng(2)
    images = rng.normal(size=(count, BATCH, FEATURES)).astype(np.float32)
    return images, rng.integers(0, CLASSES, (count, BATCH))


def train(
    recipe,
    model,
    images,
    labels,
    *,
    calls=None,
    ends=(),
    xla=False,
    strategy=None,
    averaged=None,
    **options,
):
    """Trains a model on batches; returns what the steps returned, (3, steps)."""
    strategy, variables = strategy or tf.distribute.get_strategy(), model.trainable_variables
    with strategy.scope():
        optimizer = build_optimizer(recipe.optimizer, recipe.train, variables)
        slow = slow_weights(variables) if recipe.train.lookahead else ()
    steps = training_steps(
        recipe,
        State(model, model, optimizer, slow=slow, averaged=averaged),
        strategy,
        lambda images: images,
        xla=xla,
        **options,
    )
    flat = tf.data.Dataset.from_tensor_slices((np.concatenate(images), np.concatenate(labels)))
    iterator = iter(strategy.experimental_distribute_dataset(flat.batch(BATCH)))
    found, last = [], 0
    for n in calls or [len(images)]:
        closed = tf.constant([last + i + 1 in ends for i in range(n)])
        found.append(steps(iterator, tf.fill((n,), LR), tf.zeros(n), closed, tf.constant(n)))
        last += n
    return np.concatenate([np.array(each) for each in found], axis=1)


def gradient(weights, images, labels, l2=0.0):
    """Of the mean cross-entropy of softmax(x W + b), and l2 / 2 * |W|^2, in float64."""
    kernel, bias = weights
    logits = images.astype(np.float64) @ kernel + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    error = (shares - np.eye(CLASSES)[labels]) / len(images)
    return [images.T.astype(np.float64) @ error + l2 * kernel, error.sum(axis=0)]


def sam_gradient(weights, images, labels, rho, l2=0.0):
    """Foret et al. 2021, equations 2 and 3."""
    first = gradient(weights, images, labels, l2)
    length = np.sqrt(sum((g**2).sum() for g in first))
    raised = [w + rho * g / length for w, g in zip(weights, first, strict=True)]
    return gradient(raised, images, labels, l2)


def descend(weights, gradients):
    return [w - LR * g for w, g in zip(weights, gradients, strict=True)]


def float64(model):
    return [w.astype(np.float64) for w in model.get_weights()]


def assert_close(model, weights):
    for found, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("xla", [False, True])
def test_the_parts_of_a_batch_make_the_step_of_the_whole(recipe, parts, xla):
    images, labels = batches(3)
    model, l2 = linear(), 0.1
    expected = float64(model)
    found = train(
        recipe(f"train.accumulate={parts}", f"regularization.l2={l2}"),
        model, images, labels, xla=xla,
    )  # fmt: skip
    for step in range(3):
        logits = images[step] @ expected[0] + expected[1]
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[range(BATCH), labels[step]]
        assert found[0][step] == pytest.approx(losses.sum(), rel=1e-5)
        assert found[1][step] == (logits.argmax(axis=1) == labels[step]).sum()
        expected = descend(expected, gradient(expected, images[step], labels[step], l2))
    assert_close(model, expected)


@pytest.mark.parametrize("xla", [False, True])
def test_sam_descends_by_the_gradient_above(recipe, xla):
    images, labels = batches(3)
    model, l2 = linear(), 0.1
    expected = float64(model)
    train(recipe("train.sam={rho: 0.5}", f"regularization.l2={l2}"), model, images, labels, xla=xla)
    plain = expected
    for x, y in zip(images, labels, strict=True):
        plain = descend(plain, gradient(plain, x, y, l2))
        expected = descend(expected, sam_gradient(expected, x, y, 0.5, l2))
    assert_close(model, expected)
    assert not np.allclose(plain[0], expected[0], atol=1e-2)


def test_sam_raises_each_part_by_its_own_gradient(recipe):
    images, labels = batches(1)
    model = linear()
    start = float64(model)
    train(recipe("train.sam={rho: 0.5}", "train.accumulate=3"), model, images, labels)
    parts = [
        sam_gradient(start, x, y, 0.5)
        for x, y in zip(np.split(images[0], 3), np.split(labels[0], 3), strict=True)
    ]
    mean = [sum(each) / 3 for each in zip(*parts, strict=True)]
    assert_close(model, descend(start, mean))


def test_sams_second_pass_drops_the_same_units_and_moves_no_statistics(recipe):
    images, labels = batches(2)
    plain, sharp, large = deep(), deep(), deep()
    train(recipe(), plain, images, labels)
    train(recipe("train.sam={rho: 1.0e-6}"), sharp, images, labels)
    train(recipe("train.sam={rho: 1.0}"), large, images[:1], labels[:1])
    # Other units dropped would be another gradient.
    assert_close(sharp, plain.get_weights())
    train(recipe(), plain := deep(), images[:1], labels[:1])
    states = (plain.non_trainable_variables, large.non_trainable_variables)
    assert len(states[0]) == 3  # of which the last is the generator's
    for one, other in zip(*states, strict=True):
        assert np.array_equal(one.numpy(), other.numpy())
    assert not np.allclose(plain.get_weights()[0], large.get_weights()[0], atol=1e-3)


def test_sam_stands_where_there_is_no_slope(recipe):
    images, _ = batches(1)
    model = linear()
    start = model.get_weights()
    start[0][:] = start[1][:] = 0
    model.set_weights(start)
    # As many of each class, on images of nothing: the gradient is 0.
    train(recipe("train.sam={}"), model, 0 * images, np.arange(BATCH)[None] % CLASSES)
    assert_close(model, start)


@pytest.mark.parametrize("ends", [(), (4, 7)])
@pytest.mark.parametrize("calls", [[7], [1, 2, 4]])
def test_the_slow_weights_follow_every_few_updates_and_at_the_end_of_epochs(recipe, calls, ends):
    images, labels = batches(7)
    model = linear()
    fast = slow = float64(model)
    found = recipe("train.lookahead={every: 3, share: 0.25}")
    train(found, model, images, labels, calls=calls, ends=ends)
    for step, (x, y) in enumerate(zip(images, labels, strict=True), start=1):
        fast = descend(fast, gradient(fast, x, y))
        if step in (3, 6, *ends):
            slow = [s + 0.25 * (f - s) for s, f in zip(slow, fast, strict=True)]
            fast = slow
    assert_close(model, fast)


def test_the_gradient_that_is_clipped_is_that_of_the_whole_batch(recipe):
    images, labels = batches(1)
    model = linear()
    start = float64(model)
    train(recipe("train.gradient_clip={norm: 0.1}", "train.accumulate=4"), model, images, labels)
    whole = gradient(start, images[0], labels[0])
    length = np.sqrt(sum((g**2).sum() for g in whole))
    assert length > 0.2
    assert_close(model, descend(start, [0.1 * g / length for g in whole]))


@pytest.mark.parametrize(
    "names",
    [
        # Each technique with the last one; the other pairs take longer in all.
        pair if pair[1] == "groups" else pytest.param(pair, marks=pytest.mark.slow)
        for pair in itertools.combinations(TECHNIQUES, 2)
    ],
    ids="+".join,
)
def test_techniques_go_together(recipe, names):
    images, labels = batches(4)
    one, other = deep(), deep()
    found = train(recipe(*(TECHNIQUES[name] for name in names)), one, images, labels)
    train(recipe(TECHNIQUES[names[0]]), other, images, labels)
    assert np.isfinite(found).all()
    # The second has its say.
    assert not np.allclose(one.get_weights()[0], other.get_weights()[0], atol=1e-4)


@pytest.mark.parametrize(
    "precision", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_techniques_go_with_every_precision(recipe, precision):
    images, labels = batches(4)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = deep(dropout=0.0)  # which would drop others
    finally:
        keras.config.set_dtype_policy(before)
    start, low = model.get_weights(), recipe(*TECHNIQUES.values(), f"train.precision={precision}")
    assert np.isfinite(train(low, model, images, labels)).all()
    exact = deep(dropout=0.0)
    train(recipe(*TECHNIQUES.values()), exact, images, labels)
    for found, expected, first in zip(model.get_weights(), exact.get_weights(), start, strict=True):
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected - first).max() + 1e-3


REPLICAS = """
import sys
sys.path[:0] = sys.argv[2:]
from test_steps import *

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for settings in (
    ("train.sam={rho: 0.5}", TECHNIQUES["lookahead"], TECHNIQUES["groups"]),
    ("train.gradient_clip={norm: 0.1}", "train.accumulate=2"),
    ("train.gradient_clip={value: 0.02}", "train.layer_decay=0.5"),
    ("train.gradient_clip={norm: 0.1}", "train.precision=mixed_float16"),
):
    recipe = load_recipe(sys.argv[1], (*PLAIN, *settings))
    one = linear()
    with mirrored.scope():
        two = linear()
    train(recipe, one, *batches(4))
    train(recipe, two, *batches(4), strategy=mirrored)
    assert_close(two, one.get_weights())
    print("same")
"""


@pytest.mark.slow
def test_two_replicas_take_the_steps_of_one_device(small):
    here = Path(__file__).parent
    command = [sys.executable, "-c", REPLICAS, str(small), str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"] * 4


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.gradient_clip={}", "exactly one of norm and value"),
        ("train.gradient_clip={norm: 1.0, value: 1.0}", "exactly one of norm and value"),
        ("train.gradient_clip={norm: 0}", "greater than 0"),
        ("train.gradient_clip={value: -1.0}", "greater than 0"),
        ("train.gradient_clip={size: 1.0}", "unknown key 'train.gradient_clip.size'"),
        ("train.accumulate=0", "greater than or equal to 1"),
        ("train.accumulate=1.5", "valid integer"),
        ("train.accumulate=3", "3 does not divide data.batch_size 16; must be a divisor of it"),
        ("train.sam={rho: 0}", "greater than 0"),
        ("train.sam={rho: .inf}", "finite"),
        ("train.sam=true", "section"),
        ("train.lookahead={every: 0}", "greater than or equal to 1"),
        ("train.lookahead={share: 1.1}", "less than or equal to 1"),
        ("train.lookahead={share: 0}", "greater than 0"),
        ("train.layer_decay=0", "greater than 0"),
        ("train.layer_decay=1.1", "less than or equal to 1"),
        ("train.groups=[{match: '('}]", "not a regular expression"),
        ("train.groups=[{match: ''}]", "at least 1 character"),
        ("train.groups=[{lr_scale: 2.0}]", "'train.groups.0.match' is missing"),
        ("train.groups=[{match: a, lr_scale: -1.0}]", "greater than or equal to 0"),
        ("train.groups=[{match: a, weight_decay_scale: 0.0}]", "set optimizer.weight_decay"),
        ("train.groups=[{match: a, scale: 1.0}]", "unknown key 'train.groups.0.scale'"),
    ],
)
def test_bad_settings_are_refused(small, setting, told):
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, (setting,))
    assert told in str(caught.value)


def test_the_decay_of_lars_cannot_be_scaled(small):
    settings = (
        "optimizer={name: lars, lr: 1.0, weight_decay: 0.1}",
        "train.groups=[{match: a, weight_decay_scale: 0.0}]",
    )
    with pytest.raises(RecipeError, match="whose decay is in its trust ratio"):
        load_recipe(small, settings)


def test_a_refusal_has_its_place(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        SMALL.replace("train: {", "train: {\n  accumulate: 5,\n  sam: {rho: -1.0},\n  ")
    )
    line = next(
        i for i, text in enumerate(path.read_text().splitlines(), start=1) if "sam:" in text
    )
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{line}: train\.sam\.rho"):
        load_recipe(path)
    path.write_text(path.read_text().replace("-1.0", "1.0"))
    words = rf"recipe\.yaml:{line - 1}: train\.accumulate: 5 does not divide"
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_the_resolved_recipe_reads_back(recipe, tmp_path):
    whole = recipe(*TECHNIQUES.values(), "train.layer_decay=0.5")
    (tmp_path / "resolved.yaml").write_text(whole.dump())
    assert load_recipe(tmp_path / "resolved.yaml") == whole


@pytest.mark.parametrize(("parts", "left"), [(1, 1), (2, 2), (4, 2), (8, 2), (16, 2)])
def test_a_smoke_run_keeps_its_parts(small, parts, left):
    from cnnbench.data.open import Access

    found, _ = smoke(load_recipe(small, (f"train.accumulate={parts}",)), Access())
    assert found.train.accumulate == left and found.data.batch_size % left == 0


@pytest.mark.parametrize("size", [8, 13])
def test_at_another_size_a_network_has_the_same_weights(small, size):
    spec = load_recipe(small, ("model.dropout=0.0",)).model
    model, other = (build_model(spec, (side, side, 3), CLASSES) for side in (16, size))
    resized = at_size(model, size)
    assert [id(v) for v in resized.trainable_variables] == [
        id(v) for v in model.trainable_variables
    ]
    other.set_weights(model.get_weights())
    images = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
    for training in (False, True):
        np.testing.assert_allclose(
            resized(images, training=training), other(images, training=training), atol=1e-5
        )
    for one, two in zip(model.variables, other.variables, strict=True):  # statistics were moved too
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_network_of_one_size_alone_is_refused(small):
    model = build_model(load_recipe(small, ("model={name: lenet5}",)).model, (32, 32, 3), CLASSES)
    with pytest.raises(UsageError, match="cannot take 28x28 pixels"):
        at_size(model, 28)


def test_images_are_small_up_to_their_epoch(small, tmp_path):
    sizes = "train.image_sizes=[{until: 1, size: 8}, {until: 2, size: 12}]"
    recipe = load_recipe(small, (sizes, "model.dropout=0.0", "train.steps_per_call=1"))
    learner = Learner(recipe, Access(), Settings())
    images, labels = next(iter(learner.stream.dataset(0)))
    resized = learner.preprocess(tf.image.resize(images, (8, 8), antialias=True))
    logits = keras.models.clone_model(at_size(learner.state.model, 8))
    logits.set_weights(learner.state.model.get_weights())
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
    expected = entropy(labels, logits(resized, training=True))
    seen, losses = [], []

    def watched(size, run):
        def steps(*arguments):
            found = run(*arguments)
            seen.append(size)
            losses.append(float(found[0][0]))
            return found

        return steps

    small_steps = zip((8, 12), learner.on_small_images, strict=True)
    learner.on_small_images = [(end, watched(size, run)) for size, (end, run) in small_steps]
    learner.train_steps = watched(16, learner.train_steps)
    with new_run(tmp_path / "run", recipe) as run:
        commit(run, learner.about_data(), Choice(Settings(), "recipe").about())
        fit(learner, run, Callbacks())
    assert seen == [8] * 5 + [12] * 5 + [16] * 5
    assert losses[0] == pytest.approx(float(tf.reduce_sum(expected)), rel=1e-4)


def test_small_images_are_scaled_outside_of_what_xla_compiles(recipe):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, BATCH, 12, 12, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (1, BATCH))
    losses = []
    for xla in (False, True):
        keras.utils.set_random_seed(1)
        x = inputs = keras.Input((12, 12, 3))
        x = keras.layers.Conv2D(4, 3)(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
        losses.append(train(recipe(), model, images, labels, size=8, xla=xla)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_training_of_steps_sees_images_of_its_size_too(small):
    sizes = ("train={steps: 10}", "train.image_sizes=[{until: 2, size: 8}]")
    with pytest.raises(UsageError, match="until epoch 2; must end before the 10 steps"):
        Learner(load_recipe(small, sizes), Access(), Settings())


@pytest.mark.parametrize(("sizes", "words"), [
    ("[{until: 1, size: 17}]", "17 pixels is out of range; must be 4 to 16"),
    ("[{until: 2, size: 8}, {until: 2, size: 12}]", "2 is not later than 2"),
    ("[{until: 1, size: 8}, {until: 3, size: 12}]", "1.until: 3 leaves none of 3 epochs"),
])  # fmt: skip
def test_sizes_that_make_no_sense_are_refused(small, sizes, words):
    with pytest.raises(RecipeError, match=words):
        data = "data={name: digits, image_size: 16, batch_size: 16}"
        load_recipe(small, (data, f"train.image_sizes={sizes}"))
