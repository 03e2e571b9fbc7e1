"""Published weights: imported exactly, or refused by name."""

import numpy as np
import parity
import pytest
from safetensors.numpy import save_file

from cnnbench import weights
from cnnbench.errors import UsageError
from cnnbench.lazy import keras
from cnnbench.models import build_model
from cnnbench.parts import MODELS

SMALLEST = [
    min(names.KERAS_MODELS, key=lambda name: MODELS.get(name).facts["params"])
    for names in parity.families().values()
    if names.KERAS_MODELS
]


@pytest.mark.parametrize("name", SMALLEST)
def test_logits_equal_those_of_keras_applications(name):
    inference, training = parity.compare_keras(name)
    assert inference < parity.TOLERANCE
    assert np.isnan(training) or training < parity.TOLERANCE


@pytest.mark.parametrize("family", parity.families())
def test_names_of_torch_are_one_to_one(family):
    names = parity.families()[family]
    for name in list(names.TORCH_MODELS)[:1]:
        size = parity.input_size(name)
        model = build_model(name, (size, size, 3), 10)
        theirs = [names.torch_name(name, weight.path) for weight in model.weights]
        assert len(set(theirs)) == len(theirs)


@pytest.fixture
def model():
    return build_model("resnet18", (32, 32, 3), 10)


@pytest.fixture
def state(model):
    """What torchvision would save of the same network."""
    random = np.random.default_rng(0)
    names = weights.names_of("resnet18")
    found = {}
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        values = random.normal(size=shape[::-1] if len(shape) == 2 else shape)
        found[names.torch_name("resnet18", weight.path)] = values.astype(np.float32)
        found["bn1.num_batches_tracked"] = np.array(7)
    return found


def test_a_safetensors_file_is_laid_out_as_ours(model, state, tmp_path):
    save_file(state, tmp_path / "resnet18.safetensors")
    weights.load_published(model, "resnet18", tmp_path / "resnet18.safetensors")
    kernel = model.get_layer("stem_conv").kernel.numpy()
    assert np.array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(model.get_layer("logits").kernel, state["fc.weight"].T)
    assert np.array_equal(model.get_layer("stem_norm").moving_mean, state["bn1.running_mean"])


def test_a_new_head_keeps_its_own_weights(model, state, tmp_path):
    save_file(state, tmp_path / "resnet18.safetensors")
    other = build_model("resnet18", (32, 32, 3), 3)
    before = other.get_layer("logits").kernel.numpy()
    weights.load_published(other, "resnet18", tmp_path / "resnet18.safetensors")
    assert np.array_equal(before, other.get_layer("logits").kernel)
    kernel = other.get_layer("stem_conv").kernel.numpy()
    assert np.array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("freeze", "still"),
    [("stem", ("stem_",)), ("stages", ("stem_", "stage")), ("all_but_head", ("stem_", "stage"))],
)
def test_transfer_trains_what_is_not_frozen(state, tmp_path, small, freeze, still):
    from cnnbench import checkpoint, load_recipe, train

    state = {k: 0.05 * v if "weight" in k else np.asarray(np.abs(v)) for k, v in state.items()}
    save_file(state, tmp_path / "start.safetensors")
    settings = (
        "model.name=resnet18", "model.dropout=0.0", f"model.weights={tmp_path}/start.safetensors",
        f"model.freeze={freeze}", "data.image_size=32", "data.classes=4", "train.epochs=2",
    )  # fmt: skip
    run = train(load_recipe(small, settings), run_dir=tmp_path / "run")
    saved = checkpoint.load(run.best).arrays
    start = build_model("resnet18", (32, 32, 3), 4)
    weights.load_published(start, "resnet18", tmp_path / "start.safetensors")
    for name, weight in checkpoint.variables_by_name("model", start.weights).items():
        same = np.array_equal(saved[name], weight.numpy())
        assert same == weight.path.startswith(still) or weight.path == "logits/bias"


@pytest.mark.parametrize("harm", ["missing", "extra", "shape", "nan"])
def test_wrong_tensors_are_named_and_nothing_is_loaded(model, state, tmp_path, harm):
    if harm == "missing":
        del state["layer3.1.bn2.bias"]
        expected = "stage3_block2_norm2/beta: missing"
    elif harm == "extra":
        state["layer9.weight"] = np.zeros(3, np.float32)
        expected = r"layer9\.weight \(of the file\): not in the network"
    elif harm == "shape":
        state["layer1.0.conv1.weight"] = np.zeros((64, 64, 5, 5), np.float32)
        expected = r"stage1_block1_conv1/kernel: \(5, 5, 64, 64\), not \(3, 3, 64, 64\)"
    else:
        state["fc.bias"][3] = np.nan
        expected = "logits/bias: NaN"
    save_file(state, tmp_path / "x.safetensors")
    before = [w.numpy() for w in model.weights]
    with pytest.raises(UsageError, match=expected):
        weights.load_published(model, "resnet18", tmp_path / "x.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))


@pytest.mark.parametrize("file", ["x.pth", "x.bin", "x"])
def test_a_pickle_is_refused_unread(model, tmp_path, file):
    with pytest.raises(UsageError, match=r"torch_to_safetensors\.py"):
        weights.load_published(model, "resnet18", tmp_path / file)


@pytest.mark.parametrize("file", ["x.safetensors", "x.h5"])
def test_a_damaged_file_is_refused(model, state, tmp_path, file):
    save_file(state, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="cannot read the weights"):
        weights.load_published(model, "resnet18", tmp_path / file)


def test_weights_for_another_stride_are_refused(tmp_path):
    spec = MODELS.spec("resnet50")
    ours = build_model(spec, (32, 32, 3), 10)
    import h5py

    with h5py.File(tmp_path / "resnet50.h5", "w") as file:
        group = file.create_group("conv1_conv")
        group.attrs["weight_names"] = [b"conv1_conv/kernel:0"]
        group["conv1_conv/kernel:0"] = np.zeros((7, 7, 3, 64), np.float32)
    with pytest.raises(UsageError, match=r"model\.stride of 'second'"):
        weights.load_published(ours, "resnet50", tmp_path / "resnet50.h5", spec.options())


def test_a_file_as_keras_applications_publishes(tmp_path):
    import h5py

    theirs = keras.applications.MobileNet(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    with h5py.File(tmp_path / "mobilenet.h5", "w") as file:
        for layer in theirs.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.path.rpartition('/')[2]}:0" for w in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = weight.numpy()
    ours = build_model("mobilenet_v1", (64, 64, 3), 10)
    weights.load_published(ours, "mobilenet_v1", tmp_path / "mobilenet.h5")
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    assert parity.error(ours(images, training=False), theirs(images, training=False)) < 1e-5
