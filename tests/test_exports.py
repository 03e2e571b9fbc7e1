"""Evaluation and exports: numbers that agree, and artifacts that are refused when they do not."""

import importlib
import json

import numpy as np
import pytest

from cnnbench import evaluate, export, network, open_run, predict, train
from cnnbench.data.datasets import Access
from cnnbench.data.pipeline import evaluation_batches, evaluation_examples
from cnnbench.errors import RunError, VerificationError
from cnnbench.lazy import tf
from cnnbench.recipe import load_recipe

export_module = importlib.import_module("cnnbench.exports")


@pytest.fixture(scope="module")
def images(digits_run):
    dataset = network.open_data(digits_run, Access())
    examples, _ = evaluation_examples(dataset, digits_run.recipe.data, "test")
    batches = list(evaluation_batches(examples, digits_run.recipe.data, (32, 32), 60))
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def test_evaluation_equals_a_plain_count(digits_run, images):
    result = evaluate(digits_run)
    pixels, labels = images
    net = network.restore(digits_run)
    p = net(pixels)["probabilities"].numpy()
    own = p[np.arange(len(labels)), labels]
    assert result["examples"] == len(labels) == 360
    assert result["top1"] == pytest.approx((p.argmax(1) == labels).mean())
    assert result["nll"] == pytest.approx(-np.log(own).mean(), rel=1e-4)
    assert result["loss"] == pytest.approx(result["nll"], rel=1e-4)
    assert result["top5"] >= result["top1"] > 0.8
    assert np.trace(result["confusion"]) == round(result["top1"] * 360)
    assert sum(row["examples"] for row in result["per_class"]) == 360
    assert result["params"] == 61_706 and result["macs"] == 416_520
    assert result["latency_ms"]["p95"] >= result["latency_ms"]["p50"] > 0
    assert json.loads((digits_run.path / "eval.json").read_text()) == result


def test_the_validation_split_is_evaluated_apart(digits_run):
    result = evaluate(digits_run, split="validation")
    assert result["examples"] == 100 and result["target"] is None
    best = max(row["validation"]["top1"] for row in digits_run.metrics())
    assert result["top1"] == pytest.approx(best)
    assert (digits_run.path / "eval-validation.json").is_file()


def test_every_format_is_verified(digits_run):
    rows = export(digits_run)
    assert [row["format"] for row in rows] == list(export_module.FORMATS)
    for row in rows:
        assert row["passed"] and row["agreement"] == 1.0 and row["examples"] == 360
        assert row["top1"] == row["reference_top1"]
        assert row["max_abs_logit_diff"] < 1e-3
        folder = export_module.folder_of(digits_run, row["format"])
        (written,) = json.loads((folder / "verify.json").read_text())["rows"]
        assert written.items() <= row.items()
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["classes"] == list("0123456789")


def test_the_saved_model_takes_bytes_floats_and_other_sizes(digits_run, images):
    export(digits_run, ["saved_model"], verify=False)
    loaded = tf.saved_model.load(str(digits_run.path / "saved_model"))
    pixels = images[0][:8]
    net = network.restore(digits_run)
    expected = net(pixels)["probabilities"].numpy()
    serve, serve_float = (loaded.signatures[key] for key in ("serving_default", "serve_float"))
    out = serve(images=tf.constant(pixels))
    assert np.allclose(out["probabilities"], expected, atol=1e-5)
    assert [name.decode() for name in out["classes"].numpy()] == list("0123456789")
    floats = serve_float(images=tf.constant(pixels / 255, tf.float32))
    assert np.allclose(floats["probabilities"], expected, atol=1e-5)
    larger = tf.repeat(tf.repeat(tf.constant(pixels), 2, axis=1), 2, axis=2)
    scaled = serve(images=larger)["probabilities"].numpy()
    assert (scaled.argmax(1) == expected.argmax(1)).mean() >= 7 / 8


def test_the_tflite_file_takes_bytes(digits_run, images):
    from ai_edge_litert.interpreter import Interpreter

    export(digits_run, ["tflite"], verify=False)
    interpreter = Interpreter(str(digits_run.path / "exports/tflite/model.tflite"))
    (detail,) = interpreter.get_input_details()
    assert detail["dtype"] == np.uint8 and detail["shape"].tolist() == [1, 32, 32, 1]
    out = interpreter.get_signature_runner()(images=images[0][:1])
    assert out["probabilities"].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("harm", ["weights", "normalisation", "nan"])
def test_a_damaged_artifact_is_not_let_through(digits_run, tmp_path, monkeypatch, harm):
    import shutil
    from dataclasses import replace

    shutil.copytree(digits_run.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    write = export_module._WRITERS["tflite"]

    def harmed(net, folder):
        if harm == "normalisation":
            net = replace(net, preprocess=replace(net.preprocess, mean=(0.9,)))
            return write(net, folder)
        kernel = net.model.get_layer("logits").kernel
        before = kernel.numpy()
        kernel.assign(np.nan * before if harm == "nan" else np.roll(before, 1, axis=1))
        write(net, folder)
        kernel.assign(before)
        return None

    monkeypatch.setitem(export_module._WRITERS, "tflite", harmed)
    shutil.rmtree(run.path / "exports", ignore_errors=True)
    with pytest.raises(VerificationError, match="tflite agrees with Keras on"):
        export(run, ["tflite"])
    assert not (run.path / "exports/tflite").exists()
    (row,) = json.loads((run.path / "exports/tflite.failed/verify.json").read_text())["rows"]
    assert row["passed"] is False


def test_predict_equals_the_network(digits_run, images, tmp_path):
    from PIL import Image

    Image.fromarray(images[0][0, :, :, 0]).save(tmp_path / "digit.png")
    (row,) = predict(digits_run, [tmp_path / "digit.png"], top=10)
    expected = network.restore(digits_run)(images[0][:1])["probabilities"].numpy()[0]
    assert [float(expected[int(t["class"])]) for t in row["top"]] == pytest.approx(
        [t["probability"] for t in row["top"]], rel=1e-4
    )
    assert row["top"][0]["probability"] == pytest.approx(expected.max(), rel=1e-4)


def test_predict_and_the_saved_model_treat_other_sizes_alike(digits_run, tmp_path):
    from PIL import Image

    export(digits_run, ["saved_model"], verify=False)
    serve = tf.saved_model.load(str(digits_run.path / "saved_model")).signatures["serving_default"]
    random = np.random.default_rng(0)
    for size in ((60, 240), (33, 40), (20, 24)):
        pixels = random.integers(0, 255, size, np.uint8)
        Image.fromarray(pixels).resize(size[::-1]).save(tmp_path / "x.png")
        (row,) = predict(digits_run, [tmp_path / "x.png"], top=10)
        theirs = serve(images=tf.constant(pixels[None, :, :, None]))["probabilities"].numpy()[0]
        ours = {int(likely["class"]): likely["probability"] for likely in row["top"]}
        assert max(abs(ours[i] - theirs[i]) for i in range(10)) < 0.02


def test_best_weights_that_vanished_are_not_replaced(digits_run, tmp_path):
    import shutil

    shutil.copytree(digits_run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(RunError, match="best"):
        evaluate(open_run(tmp_path / "run"))
    evaluate(open_run(tmp_path / "run"), weights="last")
    assert (tmp_path / "run" / "eval-last.json").is_file()


@pytest.mark.parametrize("color", ["grey", "hsv", "yuv"])
def test_colour_spaces_survive_the_export(small, tmp_path, color):
    settings = (f"data.color={color}", "train.epochs=2", "model.name=lenet5", "model.dropout=0.0")
    run = train(load_recipe(small, settings), run_dir=tmp_path / "run")
    for row in export(run, examples=50):
        assert row["passed"] and row["agreement"] == 1.0


def test_a_net_trained_in_half_precision_is_evaluated_in_single(small, tmp_path):
    recipe = load_recipe(small, ("train.precision=mixed_float16", "train.epochs=2"))
    run = train(recipe, run_dir=tmp_path / "run")
    (row,) = export(run, ["tflite"], examples=20)
    assert row["passed"]
