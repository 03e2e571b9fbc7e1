"""Mutations of a trained network: each is told from an honest artifact of any precision."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cnnbench.backend.lazy import keras
from cnnbench.data.preprocess import COLOR_STATISTICS, Preprocess
from cnnbench.exports.formats.format import CALIBRATED, format_of, known_formats, module_of
from cnnbench.exports.formats.request import Request
from cnnbench.exports.process import Artifact
from cnnbench.models.layers.fast import plain
from cnnbench.runs.network import Network
from cnnbench.tasks.task import task_named

TASK, LOSS = task_named("classification"), "cross_entropy"
CASES = [(form, p) for form, about in known_formats().items() for p in about.precisions]
LAYERS = ("conv1", "conv2", "dense", "logits")


@pytest.fixture(scope="module")
def digits():
    """Red and blue digits, 16x16: a class is a digit modulo 5 and a colour."""
    from sklearn.datasets import load_digits

    data, random = load_digits(), np.random.default_rng(0)
    grey = (data.images * (255 / 16)).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(x).resize((16, 16))) for x in grey])
    is_blue = random.integers(0, 2, len(large))
    images = random.integers(0, 40, (*large.shape, 3), np.uint8)
    images[range(len(large)), ..., 2 * is_blue] = np.maximum(large, 20)
    return images, (data.target % 5 + 5 * is_blue).astype(np.int32)


@pytest.fixture(scope="module")
def net(digits):
    images, labels = digits
    keras.utils.set_random_seed(0)
    given = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(12, 3, padding="same", use_bias=False, name="stem")(given)
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization(momentum=0.9)(x))
    for i in (1, 2):
        x = keras.layers.Conv2D(16, 3, activation="relu", name=f"conv{i}")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(32, "relu", name="dense")(keras.layers.Flatten()(x))
    model = keras.Model(given, keras.layers.Dense(10, name="logits")(x))
    prepare = Preprocess("rgb", *COLOR_STATISTICS["rgb"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    for name in LAYERS:  # biases that matter, as those of folded normalizations do
        layer = model.get_layer(name)
        layer.bias.assign(np.linspace(-4, 4, layer.bias.shape[0]))
    model.fit(prepare(images[:1400]), labels[:1400], batch_size=64, epochs=6, verbose=0)
    names = tuple(map(str, range(10)))
    return Network(plain(model), prepare, TASK, names, LOSS, (16, 16, 3), 16)


@pytest.fixture(scope="module")
def answers(digits, net, tmp_path_factory):
    """Returns the logits of an artifact for the test images; each artifact is written once."""
    calibration = np.concatenate([digits[0][:200], np.zeros((1, 16, 16, 3), np.uint8)])
    calibration[-1, :8] = 255

    @functools.cache
    def logits(form, precision):
        folder = tmp_path_factory.mktemp("artifact") / "a"
        images = calibration if precision in CALIBRATED else None
        module_of(form).write(Request(net, precision, calibration=images), folder)
        images = digits[0][1400:]
        # A process that OpenVINO ran in has no stack left for the handlers of signals.
        if form == "openvino":
            with Artifact(*format_of(folder)) as opened:
                return opened.outputs(images)["logits"]
        loaded = module_of(form).load(format_of(folder)[1])
        batches = np.split(images, len(images) // (loaded.batch or len(images)))
        return np.concatenate([loaded.run(batch)["logits"] for batch in batches])

    return logits


def row(reference, logits, labels):
    outputs = TASK.serve(logits, LOSS)
    outputs["probabilities"] = outputs["probabilities"].numpy()
    found = TASK.agreement({"logits": reference}, outputs, labels, LOSS)
    return found | {"tolerance": 1.0}  # only by the logits and the calibration


def without_bias(net, name):
    mutant = replace(net, model=plain(net.model))
    bias = mutant.model.get_layer(name).bias
    bias.assign(np.zeros(bias.shape))
    return mutant


@pytest.fixture(scope="module")
def mutants(digits, net):
    """The logits of networks that are not the one exported."""
    images = digits[0][1400:]
    permuted = replace(net, model=plain(net.model))
    kernel = permuted.model.get_layer("stem").kernel
    kernel.assign(np.roll(kernel.numpy(), 1, axis=-1))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
    renormalized = replace(net, preprocess=Preprocess("rgb", mean, std))
    found = {
        "permuted channels": permuted(images),
        "wrong normalization": renormalized(images),
        "wrong colour order": net(images[..., ::-1]),
        **{f"no bias of {name}": without_bias(net, name)(images) for name in LAYERS},
    }
    return {name: outputs["logits"].numpy() for name, outputs in found.items()}


def changed(logits):
    """Yields the logits of an artifact, changed as a wrong artifact could change them."""
    for factor in (0.51, 0.9, 1.1, 1.5):
        yield f"scaled by {factor}", logits * factor
    shifted = logits.copy()
    shifted[:, 3] += 0.6 * np.sqrt(np.mean(logits**2))
    yield "one class shifted", shifted
    yield "all classes shifted", logits + 0.6 * np.sqrt(np.mean(logits**2))
    yield "two classes swapped", logits[:, [1, 0, *range(2, 10)]]


@pytest.mark.parametrize(("form", "precision"), CASES)
def test_a_mutation_is_told_from_an_honest_artifact(form, precision, digits, net, answers, mutants):
    labels, logits = digits[1][1400:], answers(form, precision)
    reference = net(digits[0][1400:])["logits"].numpy()
    honest = row(reference, logits, labels)
    assert honest["reference_top1"] > 0.7  # the network is a trained one
    assert TASK.passes(honest, precision), honest
    mutations = {name: row(reference, other, labels) for name, other in changed(logits)}
    mutations |= {name: row(other, logits, labels) for name, other in mutants.items()}
    assert not [name for name, found in mutations.items() if TASK.passes(found, precision)]
