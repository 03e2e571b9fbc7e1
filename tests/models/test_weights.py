"""Published weights: imported exactly, or refused by name."""

import re

import numpy as np
import parity
import pytest
from safetensors.numpy import save_file

from cnnbench.backend.lazy import keras
from cnnbench.errors import UsageError
from cnnbench.models.build import build_model
from cnnbench.models.pretrained import load
from cnnbench.models.pretrained.names.efficientnet import efficientnet_pytorch_name, torch_name
from cnnbench.registry.kinds import MODELS, model_spec

RESNET18 = model_spec("resnet18", weights_source="torchvision:resnet18")


def start_from(model, spec, path):
    """Loads a file into a network."""
    load.start_from(model, spec.model_copy(update={"weights": str(path)}))


SMALLEST = [
    min(names.KERAS_MODELS, key=lambda name: MODELS.get(name).facts["params"])
    for names in parity.families().values()
    if names.KERAS_MODELS
]


# Those of many parameters or layers take half a minute each.
QUICK = [
    pytest.param(name, marks=pytest.mark.slow)
    if MODELS.get(name).facts["params"] > 5e6 or name in ("nasnet_mobile", "mobilenet_v2")
    else name
    for name in SMALLEST
]


@pytest.mark.parametrize("name", QUICK)
def test_logits_equal_those_of_keras_applications(name):
    inference, training = parity.compare_keras(name)
    assert inference < parity.TOLERANCE
    assert np.isnan(training) or training < parity.TOLERANCE


def test_the_table_of_parity_is_whole_and_within_the_tolerance():
    golden = parity.read_golden()
    assert list(golden) == [pair[:2] for pair in parity.pairs()]
    for row in golden.values():
        assert row.ok, row
        assert row.input == str(parity.input_size(row.network))
        assert row.arithmetic in ("float32", "float64")
        without_norms = row.network == "alexnet" or re.fullmatch(r"vgg\d+", row.network)
        assert (row.training == "-") == bool(without_norms)


def test_a_row_of_parity_leaves_a_margin_and_hides_no_nan():
    assert [parity.bound_of(x) for x in (0.0, 3e-6, 4e-6, 4e-5, np.inf)] == [
        "<1e-5", "<1e-5", "<1e-4", "4e-05", "inf",
    ]  # fmt: skip
    logits = np.array([[1.0, 2.0], [3.0, 1.0]])
    assert parity.error(logits * np.nan, logits) == np.inf
    with pytest.raises(ValueError, match="show nothing"):
        parity.error(logits, logits * np.nan)
    with pytest.raises(ValueError, match="show nothing"):
        parity.error(np.ones((2, 2)), np.ones((2, 2)))


@pytest.fixture
def model():
    return build_model("resnet18", (32, 32, 3), 10)


@pytest.fixture
def state(model):
    """What torchvision would save of the same network."""
    return drawn(model, load.names_of("resnet18").torch_name) | {
        "bn1.num_batches_tracked": np.array(7)
    }


def drawn(model, torch_name) -> dict[str, np.ndarray]:
    """Random weights of a network as PyTorch names them and lays them out."""
    random = np.random.default_rng(0)
    found = {}
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) == 4:
            # Depthwise, (h, w, channels, 1) here, is (channels, 1, h, w) there.
            outer = (2, 3) if "depthwise" in weight.path else (3, 2)
            shape = tuple(shape[axis] for axis in (*outer, 0, 1))
        values = random.normal(size=shape[::-1] if len(shape) == 2 else shape)
        found[torch_name(model.name, weight.path)] = values.astype(np.float32)
    return found


def test_a_safetensors_file_is_laid_out_as_ours(model, state, tmp_path):
    save_file(state, tmp_path / "resnet18.safetensors")
    start_from(model, RESNET18, tmp_path / "resnet18.safetensors")
    kernel = model.get_layer("stem_conv").kernel.numpy()
    assert np.array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(model.get_layer("logits").kernel, state["fc.weight"].T)
    assert np.array_equal(model.get_layer("stem_norm").moving_mean, state["bn1.running_mean"])


def test_a_new_head_keeps_its_own_weights(model, state, tmp_path):
    save_file(state, tmp_path / "resnet18.safetensors")
    other = build_model("resnet18", (32, 32, 3), 3)
    before = other.get_layer("logits").kernel.numpy()
    start_from(other, RESNET18, tmp_path / "resnet18.safetensors")
    assert np.array_equal(before, other.get_layer("logits").kernel)
    kernel = other.get_layer("stem_conv").kernel.numpy()
    assert np.array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("freeze", "still"),
    [
        pytest.param("stem", ("stem_",), marks=pytest.mark.slow),
        ("stages", ("stem_", "stage")),
        pytest.param("all_but_head", ("stem_", "stage"), marks=pytest.mark.slow),
    ],
)
def test_transfer_trains_what_is_not_frozen(state, tmp_path, small, freeze, still):
    from cnnbench import load_recipe, train
    from cnnbench.runs import checkpoint, variables

    state = {k: 0.05 * v if "weight" in k else np.asarray(np.abs(v)) for k, v in state.items()}
    save_file(state, tmp_path / "start.safetensors")
    settings = (
        "model.name=resnet18", "model.dropout=0.0", "model.weights_source=torchvision:resnet18",
        f"model.weights={tmp_path}/start.safetensors",
        f"model.freeze={freeze}", "data.image_size=32", "data.classes=4", "train.epochs=2",
    )  # fmt: skip
    run = train(load_recipe(small, settings), run_dir=tmp_path / "run")
    saved = checkpoint.load(run.best).arrays
    start = build_model("resnet18", (32, 32, 3), 4)
    start_from(start, RESNET18, tmp_path / "start.safetensors")
    for name, weight in variables.variables_by_name("model", start.weights).items():
        same = np.array_equal(saved[name], weight.numpy())
        assert same == weight.path.startswith(still) or weight.path == "logits/bias"


@pytest.mark.parametrize(
    ("source", "naming"),
    [
        ("timm:tf_efficientnet_lite0", torch_name),
        ("efficientnet_lite_pytorch:efficientnet_lite0", efficientnet_pytorch_name),
    ],
)
def test_the_naming_that_the_file_has_is_taken(source, naming, tmp_path):
    spec = model_spec("efficientnet_lite0", weights_source=source)
    lite = build_model("efficientnet_lite0", (32, 32, 3), 10)
    theirs = drawn(lite, naming)
    save_file(theirs, tmp_path / "lite0.safetensors")
    start_from(lite, spec, tmp_path / "lite0.safetensors")
    for layer, depthwise in (("stage1_block1_depthwise", True), ("stage7_block1_project", False)):
        kernel = theirs[naming(lite.name, f"{layer}/kernel")]
        expected = kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        assert np.array_equal(lite.get_layer(layer).kernel, expected)

    theirs["unknown"] = theirs.pop(naming(lite.name, "stage3_block2_project/kernel"))
    save_file(theirs, tmp_path / "lite0.safetensors")
    with pytest.raises(UsageError) as caught:
        start_from(lite, spec, tmp_path / "lite0.safetensors")
    problems = str(caught.value)
    assert "stage3_block2_project/kernel: missing" in problems
    assert "unknown (of the file): not in the network" in problems


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
        start_from(model, RESNET18, tmp_path / "x.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))


@pytest.mark.parametrize("file", ["x.pth", "x.bin", "x"])
def test_a_pickle_is_refused_unread(model, tmp_path, file):
    with pytest.raises(UsageError, match=r"torch_to_safetensors\.py"):
        start_from(model, RESNET18, tmp_path / file)


@pytest.mark.parametrize("file", ["x.safetensors", "x.h5"])
def test_a_damaged_file_is_refused(model, state, tmp_path, file):
    save_file(state, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    spec = model_spec("mobilenet_v1") if file == "x.h5" else RESNET18
    with pytest.raises(UsageError, match="cannot read the weights"):
        start_from(model, spec, tmp_path / file)


def test_weights_for_another_stride_are_refused(tmp_path):
    spec = MODELS.spec("resnet50")
    ours = build_model(spec, (32, 32, 3), 10)
    import h5py

    with h5py.File(tmp_path / "resnet50.h5", "w") as file:
        group = file.create_group("conv1_conv")
        group.attrs["weight_names"] = [b"conv1_conv/kernel:0"]
        group["conv1_conv/kernel:0"] = np.zeros((7, 7, 3, 64), np.float32)
    with pytest.raises(UsageError, match=r"model\.stride: 'second'"):
        start_from(ours, spec, tmp_path / "resnet50.h5")


@pytest.mark.parametrize(
    ("name", "options", "file"),
    [
        ("mobilenet_v1", {}, "x.safetensors"),
        ("resnet18", {}, "x.h5"),
        ("resnet50", {"stem": "deep", "stride": "first"}, "x.h5"),
    ],
)
def test_a_network_that_nobody_publishes_is_refused(name, options, file, tmp_path):
    import h5py

    save_file({"x": np.zeros(1)}, tmp_path / "x.safetensors")
    with h5py.File(tmp_path / "x.h5", "w") as group:
        group["x"] = np.zeros(1)
        group.create_group("conv1_conv").attrs["weight_names"] = [b"x"]
        group["conv1_conv/x"] = np.zeros(1)
    spec = MODELS.spec(name, **options)
    ours = build_model(spec, (32, 32, 3), 10)
    with pytest.raises(UsageError, match=name):
        start_from(ours, spec, tmp_path / file)


@pytest.mark.parametrize("old_names", [False, True])
def test_a_file_as_keras_applications_publishes(tmp_path, old_names):
    """Releases before Keras 3 named some layers otherwise, with slashes even, and some weights."""
    import h5py

    def old(name: str) -> str:
        if not old_names:
            return name
        for new, before in {"conv1": "conv1/conv", "conv_preds": "Logits"}.items():
            name = before if name == new else name
        return name

    theirs = keras.applications.MobileNet(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    with h5py.File(tmp_path / "mobilenet.h5", "w") as file:
        file.attrs["layer_names"] = [old(layer.name).encode() for layer in theirs.layers]
        for layer in theirs.layers:
            group = file.create_group(old(layer.name))
            depthwise = old_names and isinstance(layer, keras.layers.DepthwiseConv2D)
            kinds = [w.path.rpartition("/")[2] for w in layer.weights]
            kinds = ["depthwise_kernel"] if depthwise else kinds
            names = [f"{old(layer.name)}/{kind}:0" for kind in kinds]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = weight.numpy()
    ours = build_model("mobilenet_v1", (64, 64, 3), 10)
    start_from(ours, model_spec("mobilenet_v1"), tmp_path / "mobilenet.h5")
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    assert parity.error(ours(images, training=False), theirs(images, training=False)) < 1e-5
