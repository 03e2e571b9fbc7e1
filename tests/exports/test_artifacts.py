"""Every format in every precision: what its own runtime outputs, and what is in the file."""

import functools
import os
import signal
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest

from cnnbench.backend.lazy import keras, tf
from cnnbench.data.open import Access
from cnnbench.data.preprocess import COLOR_STATISTICS, Preprocess
from cnnbench.errors import UsageError, VerificationError
from cnnbench.exports import calibrate, explain
from cnnbench.exports.formats import format as format_module
from cnnbench.exports.formats import tflite
from cnnbench.exports.formats.format import (
    CALIBRATED,
    format_of,
    known_formats,
    module_of,
    require,
)
from cnnbench.exports.formats.request import Request
from cnnbench.exports.options import CALIBRATION_METHODS
from cnnbench.exports.process import Artifact
from cnnbench.models.layers.fast import plain
from cnnbench.runs import network
from cnnbench.runs.network import Network
from cnnbench.system.processes import WorkerError
from cnnbench.tasks.task import task_named

FORMATS = known_formats()
CASES = [(form, precision) for form, about in FORMATS.items() for precision in about.precisions]
# Of the largest logit, how much may be lost; int8 has 256 steps, and several layers.
LOST = {"float32": 1e-5, "float16": 2e-3, "dynamic": 0.02, "int8": 0.05, "int16x8": 0.02}


@pytest.fixture(scope="module")
def net(digits_run):
    restored = network.restore(digits_run)
    return replace(restored, model=plain(restored.model))


@pytest.fixture(scope="module")
def images(digits_run):
    return calibrate.images(digits_run, 60, Access())


@pytest.fixture(scope="module")
def written(net, images, tmp_path_factory):
    """Returns the folder of an artifact of the digits' network; each is written once."""

    @functools.cache
    def folder(form, precision, inside):
        place = tmp_path_factory.mktemp("artifact") / "a"
        write(place, net, form, precision, images, preprocessing=inside)
        return place

    return lambda form, precision="float32", inside=True: folder(form, precision, inside)


def write(folder, net, form, precision="float32", images=None, **options):
    wanted = images if precision in CALIBRATED else None
    request = Request(net, precision, calibration=wanted, **options)
    module_of(form).write(request, folder)


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        # The tests of mutations measure these too.
        pytest.param(*case, marks=pytest.mark.slow)
        if case[1] in ("float16", "dynamic", "int16x8")
        else case
        for case in CASES
    ],
)
def test_an_artifact_answers_as_the_network(form, precision, net, images, written):
    reference = net(images)["logits"].numpy()
    bound = LOST[precision] * np.abs(reference).max()
    for inside, given in ((True, images), (False, net.preprocess(images).numpy())):
        found, path = format_of(written(form, precision, inside))
        assert found == form
        # A process that OpenVINO ran in has no stack left for the handlers of signals.
        if form == "openvino":
            with Artifact(form, path) as opened:
                assert opened.takes_pixels is inside
                assert np.abs(opened.outputs(given)["logits"] - reference).max() < bound
            continue
        loaded = module_of(found).load(path)
        assert loaded.takes_pixels is inside
        answers = [loaded.run(given[i : i + 1])["logits"] for i in range(len(given))]
        assert np.abs(np.concatenate(answers) - reference).max() < bound
        assert loaded.batch == (1 if form == "tflite" else None)
        if form != "tflite":
            assert np.abs(loaded.run(given[:7])["logits"] - reference[:7]).max() < bound


def tensors_of(folder):
    return tflite._graph((folder / "model.tflite").read_bytes())


@pytest.mark.parametrize("precision", CALIBRATED)
def test_weights_lie_where_a_run_time_may_read_them(written, precision):
    from ai_edge_litert import schema_py_generated as schema

    content = (written("tflite", precision) / "model.tflite").read_bytes()
    model = schema.Model.GetRootAs(content)
    buffers = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
    places = [table.Vector(place) for table in buffers if (place := table.Offset(4))]
    assert len(places) > 5 and all(place % 16 == 0 for place in places)


@pytest.mark.parametrize(("inside", "dtype"), [(True, "uint8"), (False, "int8")])
def test_int8_has_integers_alone_and_pixels_go_in_as_they_are(written, inside, dtype):
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.schema_py_generated import TensorType

    folder = written("tflite", "int8", inside)
    graph = tensors_of(folder)
    assert all(t.type not in (TensorType.FLOAT32, TensorType.FLOAT16) for t in graph.tensors)
    kernels = [t for t in graph.tensors if len(t.shape) == 4 and len(t.quantization.scale) > 1]
    channels = {len(t.quantization.scale) for t in kernels}
    assert {6, 16} <= channels  # per channel, as LeNet has them
    assert all(t.quantization.quantizedDimension == 0 for t in kernels)
    runner = Interpreter(str(folder / "model.tflite")).get_signature_runner()
    (given,) = runner.get_input_details().values()
    assert given["dtype"] == np.dtype(dtype)
    if inside:
        assert given["quantization"] == (1.0, 0)
    outputs = runner.get_output_details()
    assert {detail["dtype"] for detail in outputs.values()} == {np.dtype(dtype).type}
    assert outputs["probabilities"]["quantization"][0] == 1 / 256


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_ranges_are_extremes_of_all_images_or_means_of_those_of_batches(
    net, images, tmp_path, method
):
    batches = [images] if method == "min_max" else np.array_split(images, 12)
    assert len(images) == 61 and {len(batch) for batch in batches} <= {61, 5, 6}
    logits = [net(batch)["logits"].numpy() for batch in batches]
    low, high = np.mean([x.min() for x in logits]), np.mean([x.max() for x in logits])
    assert low < 0 < high
    for form in ("tflite", "onnx"):
        write(tmp_path / form, net, form, "int8", images, calibration_method=method)
    graph = tensors_of(tmp_path / "tflite")
    pixels = graph.tensors[graph.inputs[0]].quantization
    assert (pixels.scale[0], pixels.zeroPoint[0]) == (pytest.approx(1), 0)
    steps = [graph.tensors[i].quantization.scale[0] for i in graph.outputs]
    assert pytest.approx((high - low) / 255, rel=1e-3) in steps
    constants = onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer
    (step,) = (onnx.numpy_helper.to_array(x) for x in constants if x.name == "logits_scale")
    assert step == pytest.approx((high - low) / 255, rel=1e-3)


def test_an_int8_file_that_would_stretch_pixels_is_refused(net, images, tmp_path):
    dark = images[images.max(axis=(1, 2, 3)) < 250] // 2
    with pytest.raises(VerificationError, match="to take unscaled pixels"):
        write(tmp_path / "a", net, "tflite", "int8", dark)


def test_half_precision_halves_the_file(written):
    sizes = {
        precision: (written("tflite", precision) / "model.tflite").stat().st_size
        for precision in FORMATS["tflite"].precisions
    }
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert max(sizes[p] for p in ("dynamic", "int8", "int16x8")) < 0.35 * sizes["float32"]


@pytest.mark.parametrize(
    ("channels", "color"),
    [(3, "grey"), (3, "yuv"), (3, "hsv"), (1, "rgb"), (3, "bgr"), (1, "bgr")],
)
def test_layers_preprocess_as_the_operations_do(channels, color):
    from cnnbench.exports.formats.keras import preprocessed

    prepare = Preprocess(color, *COLOR_STATISTICS[color])
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 9, channels), np.uint8)
    pixels[0] = 7  # no hue
    given = keras.Input((9, 9, channels), dtype="uint8")
    layers = keras.Model(given, preprocessed(given, prepare))
    assert np.allclose(layers(pixels), prepare(pixels), atol=1e-5)


def test_a_layer_that_keras_does_not_know_is_refused(tmp_path):
    layer = import_module("cnnbench.models.alexnet")._local_response_normalization()
    given = keras.Input((8, 8, 3))
    model = keras.Model(given, keras.layers.GlobalAveragePooling2D()(layer()(given)))
    with pytest.raises(UsageError, match="LocalResponseNormalization is cnnbench's own"):
        write(tmp_path / "a", small_net(model), "keras")


def small_net(model):
    prepare = Preprocess("rgb", *COLOR_STATISTICS["rgb"])
    names = tuple(map(str, range(model.output_shape[-1])))
    task = task_named("classification")
    return Network(model, prepare, task, names, "cross_entropy", (8, 8, 3), 8)


@pytest.mark.parametrize(
    ("form", "precision", "operation"),
    [
        ("tflite", "float32", "erfinv"),
        ("tflite", "int16x8", "atan"),
        ("onnx", "float32", "erfinv"),
        ("openvino", "float32", "erfinv"),
    ],
)
def test_an_operation_that_a_format_lacks_is_told_in_a_line(tmp_path, form, precision, operation):
    given = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(given)
    x = keras.layers.Lambda(getattr(tf.math, operation))(x)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match=f"cannot be converted to {FORMATS[form].title}") as caught:
        write(tmp_path / "a", small_net(keras.Model(given, x)), form, precision, pixels)
    assert operation in str(caught.value).lower()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("form", ["tflite", "onnx", "openvino"])
def test_grouped_convolutions_and_gelu_are_in_every_format(tmp_path, form):
    given = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="gelu")(given)
    x = keras.layers.Conv2D(8, 3, groups=2, activation="gelu")(x)
    net = small_net(keras.Model(given, keras.layers.GlobalAveragePooling2D()(x)))
    write(tmp_path / "a", net, form)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    with Artifact(*format_of(tmp_path / "a")) as opened:
        assert np.allclose(opened.outputs(pixels)["logits"], net(pixels)["logits"], atol=1e-5)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("form", ["tflite", "onnx"])
def test_averaged_ranges_have_room_for_white_though_images_are_dark(tmp_path, form, inside):
    given = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, name="conv")(given)
    net = small_net(keras.Model(given, keras.layers.GlobalMaxPooling2D()(x)))
    net.model.get_layer("conv").set_weights([np.eye(3)[None, None], np.zeros(3)])
    dark = np.random.default_rng(0).integers(0, 60, (40, 8, 8, 3), np.uint8)
    request = {"calibration_method": "average_min_max", "preprocessing": inside}
    write(tmp_path / "a", net, form, "int8", dark, **request)
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    seen = white if inside else net.preprocess(white).numpy()
    found = module_of(form).load(format_of(tmp_path / "a")[1]).run(seen)
    assert np.allclose(found["logits"], net(white)["logits"], atol=0.05)


def test_what_is_left_in_float_besides_what_was_to_be_kept_is_refused(tmp_path):
    given = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, name="stage1_conv")(given)
    x = keras.layers.Lambda(tf.nn.local_response_normalization)(x)
    net = small_net(keras.Model(given, keras.layers.GlobalAveragePooling2D()(x)))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    pixels[0, 0, :2] = [[0], [255]]
    rows = explain.layer_errors(Request(net, "int8", calibration=pixels))
    (conv,) = (row.tensor for row in rows if row.layer == "stage1_conv")
    for kept in ((), (conv,)):
        with pytest.raises(VerificationError, match="LOCAL_RESPONSE_NORMALIZATION"):
            write(tmp_path / str(len(kept)), net, "tflite", "int8", pixels, keep_float=kept)


def test_explain_names_the_layer_that_loses_most(net, images):
    # One weight that no image feels makes the steps of all weights of this layer coarse.
    harmed = replace(net, model=plain(net.model))
    first, second = (harmed.model.get_layer(name) for name in ("head_dense1", "head_dense2"))
    kernel, bias = first.get_weights()
    kernel[:, 0], bias[0] = 0, -1
    first.set_weights([kernel, bias])
    kernel, bias = second.get_weights()
    kernel[0] = 30 * np.abs(kernel).max()
    second.set_weights([kernel, bias])
    rows = explain.layer_errors(Request(harmed, "int8", calibration=images))
    assert [row.relative_error for row in rows] == sorted(
        (row.relative_error for row in rows), reverse=True
    )
    assert rows[0].layer == "head_dense2" and rows[0].relative_error > 0.05
    known = {layer.name for layer in net.model.layers} | {"probabilities"}
    assert {row.layer for row in rows} <= known
    assert {"stage1_conv", "stage2_conv", "head_dense1", "logits"} <= {row.layer for row in rows}
    (clean,) = (
        row
        for row in explain.layer_errors(Request(net, "int8", calibration=images))
        if row.layer == "head_dense2"
    )
    assert clean.relative_error < 0.02


def test_layers_that_are_kept_in_float_lose_nothing(net, images, tmp_path):
    reference = net(images)["logits"].numpy()
    rows = explain.layer_errors(Request(net, "int8", calibration=images))
    lost = {}
    for count in (0, len(rows)):
        kept = tuple(row.tensor for row in rows[:count])
        folder = tmp_path / str(count)
        write(folder, net, "tflite", "int8", images, keep_float=kept)
        loaded = tflite.load(folder / "model.tflite")
        answers = [loaded.run(images[i : i + 1])["logits"] for i in range(len(images))]
        lost[count] = np.abs(np.concatenate(answers) - reference).mean()
    assert lost[len(rows)] < 0.7 * lost[0]


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):

    lacking = replace(FORMATS["onnx"], packages=("numpy", "not_installed_package"))
    monkeypatch.setattr(format_module, "known_formats", lambda: FORMATS | {"onnx": lacking})
    with pytest.raises(UsageError, match=r"not_installed_package; pip install 'cnnbench\[onnx\]'"):
        require("onnx")


def test_a_file_is_told_by_its_name(tmp_path):
    (tmp_path / "a.onnx").touch()
    assert format_of(tmp_path / "a.onnx")[0] == "onnx"
    for path, what in ((tmp_path, "not an artifact"), (tmp_path / "x.tflite", "no such file")):
        with pytest.raises(UsageError, match=what):
            format_of(path)


@pytest.mark.parametrize(
    "form",
    [  # each of which TensorFlow is imported for
        pytest.param(form, marks=pytest.mark.slow) if form in ("keras", "saved_model") else form
        for form in FORMATS
    ],
)
def test_probabilities_are_what_the_loss_makes_of_logits(tmp_path, form):
    given = keras.Input((8, 8, 3))
    model = keras.Model(given, keras.layers.GlobalAveragePooling2D()(given))
    net = replace(small_net(model), loss="binary_cross_entropy")
    write(tmp_path / "a", net, form)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    with Artifact(*format_of(tmp_path / "a")) as opened:
        found = opened.outputs(pixels)
    assert np.allclose(found["logits"], net(pixels)["logits"], atol=1e-5)
    assert np.allclose(
        found["probabilities"], 1 / (1 + np.exp(-net(pixels)["logits"].numpy())), atol=1e-5
    )


@pytest.mark.parametrize("form", ["tflite", "onnx", "openvino"])
def test_a_run_time_has_a_process_without_tensorflow(form, net, images, written):
    with Artifact(*format_of(written(form))) as opened:
        maps = Path(f"/proc/{opened._process.pid}/maps").read_text()
        assert "site-packages/tensorflow/" not in maps and "numpy" in maps
        assert np.allclose(opened.outputs(images)["logits"], net(images)["logits"], atol=1e-4)
        speed = opened.speed(images)
        assert speed["latency_ms"]["p95"] >= speed["latency_ms"]["p50"] > 0
        assert 10 < speed["peak_memory_mb"] < 300
        assert opened.best_batch(images)["images_per_s"] > 0


def test_a_killed_run_time_is_told_and_leaves_no_files_behind(
    images, written, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Artifact(*format_of(written("tflite"))) as opened:
        (folder,) = tmp_path.iterdir()
        variables = Path(f"/proc/{opened._process.pid}/environ").read_bytes().split(b"\0")
        assert f"TMPDIR={folder}".encode() in variables
        (folder / "left").touch()
        os.kill(opened._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="the runtime ended by signal 9"):
            opened.outputs(images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_signals_are_handled_after_a_file_was_written(form, written):
    written(form)
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert came == [signal.SIGUSR1]


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "a.tflite").write_bytes(b"TFL3 or not")
    with pytest.raises(WorkerError, match="ValueError"):
        Artifact("tflite", tmp_path / "a.tflite")
