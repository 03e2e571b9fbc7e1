"""Evaluation and exports: numbers that agree, and artifacts that are refused when they do not."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from typed import problems

from cnnbench import evaluate, export, open_run, predict, train
from cnnbench.backend.lazy import tf
from cnnbench.cli import cli
from cnnbench.data.open import Access
from cnnbench.data.preprocess import fit
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import evaluation_examples
from cnnbench.errors import RunError, UsageError, VerificationError
from cnnbench.evaluation.artifact import evaluate_artifact
from cnnbench.evaluation.evaluate import Evaluation
from cnnbench.exports import calibrate
from cnnbench.exports.export import ExportRow
from cnnbench.exports.formats.format import known_formats, module_of
from cnnbench.exports.options import ExportOptions
from cnnbench.exports.plan import plan
from cnnbench.exports.write import folder_of
from cnnbench.recipe.load import load_recipe
from cnnbench.report import tables
from cnnbench.runs import checkpoint, network
from cnnbench.system import files
from cnnbench.tasks.task import task_named

FORMATS = known_formats()
FLOAT = [(form, "float32") for form in FORMATS]
OTHERS = [(f, p) for f, about in FORMATS.items() for p in about.precisions if p != "float32"]


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


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the digits' run, in whose folder nobody else writes."""
    left = shutil.ignore_patterns("exports", "saved_model", "eval*.json")
    shutil.copytree(digits_run.path, tmp_path / "digits", ignore=left)
    return open_run(tmp_path / "digits")


def test_every_format_is_verified(digits_run):
    rows = export(digits_run, list(FORMATS))
    assert [(row["format"], row["precision"]) for row in rows] == FLOAT
    for row in rows:
        assert row["passed"] and row["agreement"] == 1.0 and row["examples"] == 360
        assert row["top1"] == row["reference_top1"] and row["top5"] == row["reference_top5"]
        assert row["mean_abs_logit_diff"] <= row["max_abs_logit_diff"] < 1e-3
        assert row["tolerance"] == 0.001
        assert row["latency_ms"]["p95"] >= row["latency_ms"]["p50"] > 0
        assert row["best_batch"]["batch_size"] >= 1 and row["best_batch"]["images_per_s"] > 0
        assert row["peak_memory_mb"] > (300 if row["format"] in ("saved_model", "keras") else 10)
        assert row["deterministic"] is ("reason" not in row)
        folder = folder_of(digits_run, row["format"])
        proof = json.loads((folder / "verify.json").read_text())
        (written,) = proof["rows"]
        assert proof["machine"]["cores"] == os.cpu_count()
        assert written.items() <= row.items()
        _check_metadata(digits_run, folder)


def _check_metadata(run, folder):
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["classes"] == list("0123456789")
    assert metadata["recipe"] == "lenet5_digits"
    assert metadata["recipe_sha256"] == files.sha256(run.path / "recipe.yaml")
    assert metadata["mean"] == run.data().mean and metadata["std"] == run.data().std
    assert metadata["preprocessing"].startswith("inside") and metadata["color"] == "grey"
    assert metadata["input"] == {"height": 32, "width": 32, "channels": 1, "dtype": "uint8"}
    assert metadata["versions"]["tensorflow"] == tf.__version__
    about = {"metadata.json", "verify.json", "eval.json"}
    found = {p for p in folder.rglob("*") if p.is_file() and p.name not in about}
    assert metadata["files"] == {str(p.relative_to(folder)): files.sha256(p) for p in found}


@pytest.mark.slow
def test_every_other_precision_is_verified(run):
    rows = export(run, ["tflite"], ["float16", "dynamic", "int8", "int16x8"])
    rows += export(run, ["onnx"], ["int8"])
    assert {(row["format"], row["precision"]) for row in rows} == set(OTHERS)
    for row in rows:
        assert not problems(row, ExportRow)
        assert row["passed"] and row["reference_top1"] - row["top1"] <= 0.01
        assert 0 < row["max_abs_logit_diff"] < 1 and row["deterministic"] is True
    int8 = json.loads((run.path / "exports/tflite-int8/metadata.json").read_text())
    assert int8["input"] | {"dtype": "uint8", "scale": 1.0, "zero_point": 0} == int8["input"]
    console = Console(width=120, file=io.StringIO())
    console.print(tables.exports(rows, task_named("classification")))
    printed = console.file.getvalue()
    assert "int16x8" in printed and str(run.path / "exports/onnx-int8") in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_preprocessing_can_be_left_to_the_user(run):
    from ai_edge_litert.interpreter import Interpreter

    rows = export(run, ["tflite"], ["float32", "int8"], options=ExportOptions(preprocessing=False))
    assert [row["passed"] for row in rows] == [True, True]
    assert not (run.path / "exports/tflite").exists()
    folder = run.path / "exports/tflite-int8-normalised"
    told = json.loads((folder / "metadata.json").read_text())["input"]
    (given,) = Interpreter(str(folder / "model.tflite")).get_input_details()
    assert (told["scale"], told["zero_point"]) == pytest.approx(given["quantization"])
    assert told["dtype"] == "int8" and given["dtype"] == np.int8
    data = run.data()  # the scale has room for black and white, and for no more
    ends = [(edge - data.mean[0]) / data.std[0] for edge in (0, 1)]
    assert told["scale"] == pytest.approx((ends[1] - ends[0]) / 255, rel=1e-3)


@pytest.mark.parametrize(
    ("harm", "cases"),
    [
        pytest.param("weights", FLOAT, marks=pytest.mark.slow),
        pytest.param("weights", OTHERS, marks=pytest.mark.slow),
        # SavedModel and Keras, whose processes take long to begin, with this harm too.
        pytest.param("normalisation", FLOAT[:2], marks=pytest.mark.slow),
        pytest.param("normalisation", FLOAT[2:], marks=pytest.mark.slow),
        pytest.param("normalisation", OTHERS, marks=pytest.mark.slow),
        ("normalisation", [("tflite", "int8")]),
    ],
)
def test_a_damaged_artifact_is_not_let_through_in_any_format(run, monkeypatch, harm, cases):
    for form in FORMATS:
        monkeypatch.setattr(module_of(form), "write", harming(module_of(form).write, harm))
    for form in dict.fromkeys(form for form, _ in cases):
        with pytest.raises(VerificationError, match=f"{form} .* agrees with Keras on") as caught:
            export(
                run, [form], [p for f, p in cases if f == form], options=ExportOptions(examples=60)
            )
        assert caught.value.exit_code == 5
    for form, precision in cases:
        folder = folder_of(run, form, precision)
        assert not folder.exists()
        failed = folder.with_name(f"{folder.name}.failed")
        (row,) = json.loads((failed / "verify.json").read_text())["rows"]
        assert row["passed"] is False and row["top1"] < row["reference_top1"]


def harming(write, harm):
    """Returns a writer that writes something else than the network it is given."""

    def harmed(request, folder):
        net = request.net
        if harm == "normalisation":
            prepare = replace(net.preprocess, mean=(3.0,))
            return write(replace(request, net=replace(net, preprocess=prepare)), folder)
        kernel = net.model.get_layer("logits").kernel
        before = kernel.numpy()
        kernel.assign(before * np.nan if harm == "nan" else np.roll(before, 1, axis=1))
        write(request, folder)
        kernel.assign(before)
        return None

    return harmed


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_nan_is_not_let_through_by_any_tolerance(run, monkeypatch, precision):
    tflite = module_of("tflite")
    monkeypatch.setattr(tflite, "write", harming(tflite.write, "nan"))
    with pytest.raises(VerificationError, match="NaN or infinite"):
        export(run, ["tflite"], [precision], options=ExportOptions(examples=20, tolerance=1.0))


def test_an_artifact_that_does_not_run_is_not_let_through(run, monkeypatch):
    def cut(request, folder):
        folder.mkdir()
        (folder / "model.tflite").write_bytes(b"TFL3")

    monkeypatch.setattr(module_of("tflite"), "write", cut)
    with pytest.raises(VerificationError, match="tflite float32 does not run: "):
        export(run, ["tflite"], options=ExportOptions(examples=20))
    assert (run.path / "exports/tflite.failed").is_dir()


def test_a_failed_artifact_replaces_the_one_before_and_a_good_one_it(run, monkeypatch):
    tflite = module_of("tflite")
    export(run, ["tflite"], options=ExportOptions(verify=False))
    with monkeypatch.context() as patched, pytest.raises(VerificationError):
        patched.setattr(tflite, "write", harming(tflite.write, "weights"))
        export(run, ["tflite"], options=ExportOptions(examples=20))
    assert {p.name for p in (run.path / "exports").iterdir()} == {"tflite.failed"}
    export(run, ["tflite"], options=ExportOptions(examples=20))
    assert {p.name for p in (run.path / "exports").iterdir()} == {"tflite"}


def test_the_calibration_method_is_that_of_the_file(run):
    export(run, ["tflite"], ["int8"], options=ExportOptions(verify=False))
    folder = run.path / "exports/tflite-int8"
    before = (folder / "model.tflite").read_bytes()
    asked = ["--tflite", "--precision", "int8", "--calibration-method", "average_min_max"]
    done = CliRunner().invoke(cli, ["export", str(run.path), *asked, "--examples", "60"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads((folder / "verify.json").read_text())["rows"]
    assert row["calibration"] == {"images": 201, "method": "average_min_max"}
    assert (folder / "model.tflite").read_bytes() != before


def test_weights_that_are_replaced_meanwhile_are_not_exported(run, monkeypatch):
    hashes = iter("ab")
    monkeypatch.setattr(type(run), "weights_sha256", lambda _: next(hashes))
    with pytest.raises(RunError, match="the weights changed while they were read"):
        export(run, ["tflite"])
    assert not (run.path / "exports").exists()


def test_an_int8_file_that_fails_says_what_to_try(run, monkeypatch):
    tflite = module_of("tflite")
    monkeypatch.setattr(tflite, "write", harming(tflite.write, "weights"))
    tries = "try --calibration-method average_min_max or --explain --keep-float K"
    with pytest.raises(VerificationError, match=tries):
        export(run, ["tflite"], ["int8"], options=ExportOptions(examples=20))


def test_a_failure_hides_no_other_result(run, monkeypatch):
    def lacking(request, folder):
        raise UsageError("cannot be converted to ONNX: an operation")

    tflite, told = module_of("tflite"), []
    monkeypatch.setattr(module_of("onnx"), "write", lacking)
    monkeypatch.setattr(tflite, "write", harming(tflite.write, "weights"))
    with pytest.raises(VerificationError, match="tflite float32"):
        export(
            run,
            ["onnx", "tflite", "openvino"],
            options=ExportOptions(examples=20),
            on_row=told.append,
        )
    assert [row["passed"] for row in told] == [False, False, True]
    assert not [problem for row in told for problem in problems(row, ExportRow)]
    monkeypatch.undo()
    monkeypatch.setattr(module_of("onnx"), "write", lacking)
    command = ["export", str(run.path), "--onnx", "--openvino", "--examples", "20"]
    done = CliRunner().invoke(cli, command)
    assert re.search(r"onnx .*failed", done.output) and "100.00% of 20" in done.output
    assert isinstance(done.exception, UsageError)


def test_a_file_that_is_not_what_was_asked_for_hides_no_other_result(run, monkeypatch):
    def floats(request, folder):
        raise VerificationError("computes in floats")

    told = []
    monkeypatch.setattr(module_of("tflite"), "write", floats)
    with pytest.raises(VerificationError, match="in floats"):
        export(run, ["tflite", "openvino"], options=ExportOptions(examples=20), on_row=told.append)
    assert [row["passed"] for row in told] == [False, True]


def test_what_a_converter_stumbles_over_is_one_line(run, monkeypatch):
    import tf2onnx

    def stumbles(*_, **__):
        raise KeyError("a node\nand pages about it")

    monkeypatch.setattr(tf2onnx.convert, "from_function", stumbles)
    with pytest.raises(UsageError, match=r"ONNX float32: KeyError: [^\n]*a node[^\n]*$"):
        export(run, ["onnx"], options=ExportOptions(examples=20))


@pytest.mark.slow
def test_images_of_the_networks_size_are_not_scaled_again(tiny, tmp_path):
    settings = ("data.image_size=16", "data.resize_short=24")
    run = train(load_recipe(tiny, settings), run_dir=tmp_path / "run")
    (row,) = export(run, ["saved_model"])
    assert row["agreement"] == 1


ALL_AGAIN = """
import sys
from cnnbench import export, open_run
from cnnbench.exports.formats.format import known_formats
from cnnbench.exports.options import ExportOptions
FORMATS = known_formats()
for form in ("tflite", "onnx", "openvino"):
    precisions = [p for p in FORMATS[form].precisions if p in sys.argv[2:]]
    if precisions:
        options = ExportOptions(verify=False)
        export(open_run(sys.argv[1]), [form], precisions, options=options)
"""


@pytest.mark.parametrize(
    ("precisions", "files"),
    [
        (("int8",), 2),
        pytest.param(("float32",), 2 + 2, marks=pytest.mark.slow),  # OpenVINO has two files
        # By the same converter of TFLite, with another of its options.
        pytest.param(("float16", "dynamic", "int16x8"), 3, marks=pytest.mark.slow),
    ],
)
def test_two_exports_have_the_same_bytes(run, monkeypatch, precisions, files):
    written = []
    # Sets of words have another order under another seed, as that of this process is.
    another = [sys.executable, "-c", ALL_AGAIN, run.path, *precisions]
    monkeypatch.setattr(sys, "argv", ["", str(run.path), *precisions])
    for again in (
        lambda: exec(ALL_AGAIN, {}),
        lambda: subprocess.run(another, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True),
    ):
        again()
        paths = list((run.path / "exports").rglob("model.*"))
        written.append({p.relative_to(run.path): p.read_bytes() for p in paths})
    assert len(written[0]) == files
    assert written[0] == written[1]


def test_calibration_sees_training_images_alone(digits_run):
    images = calibrate.images(digits_run, 100, Access())
    assert images.shape == (101, 32, 32, 1) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert (images[-1].min(), images[-1].max()) == (0, 255)
    assert (images == calibrate.images(digits_run, 100, Access())).all()
    assert (images[:50] == calibrate.images(digits_run, 50, Access())[:50]).all()
    dataset = network.open_data(digits_run, Access())
    seen = {}
    for split in ("train", "test"):
        source = dataset.split(split).source
        read = (source.read(i)[0] for i in range(len(source)))
        seen[split] = {fit(x, digits_run.recipe.data, (32, 32)).tobytes() for x in read}
    validation, _ = evaluation_examples(dataset, digits_run.recipe.data, "validation")
    (held_out,) = evaluation_batches(validation, digits_run.recipe.data, (32, 32), 100)
    own = {image.tobytes() for image in images[:-1]}
    assert own <= seen["train"] - seen["test"]
    assert not own & {image.tobytes() for image in held_out[0]}


def test_explain_and_keep_float_say_which_layers(run):
    (row,) = export(run, ["tflite"], ["int8"], options=ExportOptions(explain=True, keep_float=2))
    assert not problems(row, ExportRow)
    folder = run.path / "exports/tflite-int8"
    layers = json.loads((folder / "explain.json").read_text())["layers"]
    assert layers == row["layers"]
    assert [layer["kept_float"] for layer in layers] == [True] * 2 + [False] * (len(layers) - 2)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["float_layers"] == [layer["layer"] for layer in layers[:2]]
    assert metadata["files"].keys() == {"model.tflite"}
    assert row["calibration"] == {"images": 201, "method": "min_max"}
    console = Console(width=120, file=io.StringIO())
    console.print(tables.exports([row], task_named("classification")))
    assert "kept in float32" in console.file.getvalue()


@pytest.mark.parametrize(
    ("formats", "precisions", "wanted"),
    [
        ((), ("float32",), [("saved_model", "float32"), ("tflite", "float32")]),
        ((), ("int8", "float16"), [("tflite", "int8"), ("tflite", "float16")]),
        (("tflite", "onnx"), ("int8",), [("tflite", "int8"), ("onnx", "int8")]),
        (("onnx",), ("int8", "int8"), [("onnx", "int8")]),
    ],
)
def test_what_is_written(formats, precisions, wanted):
    assert plan(formats, precisions).files == wanted


@pytest.mark.parametrize(
    ("formats", "precisions", "wanted"),
    [
        ((), (), [("saved_model", "float32"), ("tflite", "int8")]),
        ((), ("int8", "int8"), [("tflite", "int8")]),
        ((), ("int8", "float32"), [("saved_model", "float32"), ("tflite", "int8")]),
        (("tflite",), (), [("tflite", "int8")]),
        ((), ("float16",), None),
        ((), ("int8", "dynamic"), None),
        (("tflite",), ("float32",), None),
        (("onnx",), (), None),
    ],
)
def test_what_is_written_of_a_network_that_was_trained_for_integers(formats, precisions, wanted):
    if wanted is None:
        with pytest.raises(UsageError, match="trained with quantization"):
            plan(formats, precisions, quantized=True)
    else:
        assert plan(formats, precisions, quantized=True).files == wanted


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            ("--keras", "--precision", "int8"),
            "Keras does not support precision int8; it supports float32",
        ),
        (
            ("--onnx", "--precision", "float16"),
            "ONNX does not support precision float16; it supports float32, int8",
        ),
        (("--tflite", "--explain"), "--explain and --keep-float are only for TFLite int8"),
        (("--onnx", "--precision", "int8", "--keep-float", "1"), "are only for TFLite int8"),
        (("--precision", "int8", "--calibration-examples", "9"), "too few to compute ranges"),
        (
            ("--tflite", "--calibration-method", "average_min_max"),
            "--calibration-method is only for int8, which is not exported",
        ),
        (("--calibration-examples", "50"), "--calibration-examples has no effect"),
        (("--no-verify", "--tolerance", "0.1"), "--tolerance cannot be used with --no-verify"),
        (("--no-verify", "--examples", "10"), "--examples cannot be used with --no-verify"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(run, options, what):
    shutil.rmtree(run.path / "best")  # no weights: work would fail otherwise
    refused = CliRunner().invoke(cli, ["export", str(run.path), *options])
    said = refused.output + str(refused.exception)
    assert what in said and getattr(refused.exception, "exit_code", refused.exit_code) == 2
    assert not (run.path / "exports").exists()


def test_trained_ranges_are_neither_explained_nor_calibrated(run, monkeypatch):
    monkeypatch.setattr(type(run), "architecture", lambda self: [{"stage": {"name": "qat"}}])
    for options in ({"explain": True}, {"calibration_method": "average_min_max"}):
        with pytest.raises(UsageError, match="only for networks trained without quantiz"):
            export(run, ["tflite"], options=ExportOptions(**options))


def test_more_layers_than_there_are_cannot_be_kept(run):
    with pytest.raises(UsageError, match="--keep-float 99, but there are only"):
        export(run, ["tflite"], ["int8"], options=ExportOptions(verify=False, keep_float=99))


def test_eval_of_an_artifact_equals_eval(run):
    export(run, ["tflite"], ["float32", "int8"], options=ExportOptions(verify=False))
    ours = evaluate(run)
    artifact = run.path / "exports/tflite/model.tflite"
    asked = CliRunner().invoke(cli, ["eval", "--artifact", str(artifact), "--json"])
    assert asked.exit_code == 0, asked.output
    theirs = json.loads((artifact.parent / "eval.json").read_text())
    assert json.loads(asked.stdout) == theirs
    assert ours.keys() - {"weights"} == theirs.keys() - {"artifact", "format"}
    measured = {"throughput_images_per_s", "latency_ms", "peak_memory_mb", "batch_size"}
    about = {"weights", "loss", "nll", "ece"}
    for key in ours.keys() - measured - about:
        assert theirs[key] == ours[key], key
    for key in ("loss", "nll", "ece"):
        assert theirs[key] == pytest.approx(ours[key], rel=1e-3)
    int8 = evaluate_artifact(run, run.path / "exports/tflite-int8")
    assert not problems(ours, Evaluation) and not problems(int8, Evaluation)
    assert ours["top1"] - int8["top1"] <= 0.01 and int8["loss"] != theirs["loss"]
    shutil.copy(artifact, run.path / "my.tflite")
    evaluate_artifact(run, run.path / "my.tflite", trust=True)
    assert json.loads((run.path / "eval.json").read_text())["weights"] == "best"
    assert (run.path / "eval-my.tflite.json").is_file()


def test_an_artifact_of_other_weights_is_refused(run):
    export(run, ["tflite"], options=ExportOptions(verify=False))
    saved = checkpoint.load(run.best)
    moved = {name: array + np.float32(0.01) for name, array in saved.arrays.items()}
    checkpoint.save(run.best, checkpoint.Checkpoint(moved, saved.state))
    with pytest.raises(UsageError, match="weights have changed since this artifact was exported"):
        evaluate_artifact(run, run.path / "exports/tflite")


def test_an_artifact_that_answers_nan_is_not_measured(run, monkeypatch):
    tflite = module_of("tflite")
    with monkeypatch.context() as patched, pytest.raises(VerificationError):
        patched.setattr(tflite, "write", harming(tflite.write, "nan"))
        export(run, ["tflite"], options=ExportOptions(examples=20))
    with pytest.raises(VerificationError, match="NaN or infinity"):
        evaluate_artifact(run, run.path / "exports/tflite.failed")


def test_a_strangers_file_is_refused(run, tmp_path):
    export(run, ["tflite"], options=ExportOptions(verify=False))
    folder = run.path / "exports/tflite"
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere") / "model.tflite"
    added = shutil.copy(folder / "model.tflite", folder / "added.tflite")
    changed = folder / "model.tflite"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for artifact in (elsewhere, added, changed):
        with pytest.raises(UsageError, match=r"runs the program in it; pass --trust-model"):
            evaluate_artifact(run, artifact)
    changed.write_bytes(content)
    (folder / "metadata.json").unlink()
    with pytest.raises(UsageError, match=r"runs the program in it; pass --trust-model"):
        evaluate_artifact(run, changed)
    trusted = evaluate_artifact(run, elsewhere, trust=True)
    assert trusted["top1"] == evaluate(run)["top1"]


def test_an_artifact_that_lies_in_no_run_needs_one(tmp_path):
    (tmp_path / "a.tflite").touch()
    refused = CliRunner().invoke(cli, ["eval", "--artifact", str(tmp_path / "a.tflite")])
    assert "is not in a run directory; name the RUN" in str(refused.exception)


def test_the_saved_model_takes_bytes_floats_and_other_sizes(digits_run, images):
    export(digits_run, ["saved_model"], options=ExportOptions(verify=False))
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

    export(digits_run, ["tflite"], options=ExportOptions(verify=False))
    interpreter = Interpreter(str(digits_run.path / "exports/tflite/model.tflite"))
    (detail,) = interpreter.get_input_details()
    assert detail["dtype"] == np.uint8 and detail["shape"].tolist() == [1, 32, 32, 1]
    out = interpreter.get_signature_runner()(images=images[0][:1])
    assert out["probabilities"].sum() == pytest.approx(1, abs=1e-5)


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

    export(digits_run, ["saved_model"], options=ExportOptions(verify=False))
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
    shutil.copytree(digits_run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(RunError, match="best"):
        evaluate(open_run(tmp_path / "run"))
    evaluate(open_run(tmp_path / "run"), weights="last")
    assert (tmp_path / "run" / "eval-last.json").is_file()


@pytest.mark.parametrize(
    "color",
    ["bgr", *(pytest.param(color, marks=pytest.mark.slow) for color in ("grey", "yuv", "hsv"))],
)
def test_colour_spaces_survive_the_export(small, tmp_path, color):
    settings = (f"data.color={color}", "train.epochs=2", "model.name=lenet5", "model.dropout=0.0")
    run = train(load_recipe(small, settings), run_dir=tmp_path / "run")
    for row in export(run, ["tflite", "onnx"], options=ExportOptions(examples=50)):
        assert row["passed"] and row["agreement"] == 1.0


@pytest.mark.slow
def test_a_net_trained_in_half_precision_is_evaluated_in_single(small, tmp_path):
    recipe = load_recipe(small, ("train.precision=mixed_float16", "train.epochs=2"))
    run = train(recipe, run_dir=tmp_path / "run")
    (row,) = export(run, ["tflite"], options=ExportOptions(examples=20))
    assert row["passed"]
