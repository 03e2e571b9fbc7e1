"""Tables for people: every number in its unit, and whatever names hold."""

import io
from dataclasses import asdict

import pytest
from rich.console import Console

from cnnbench.report import tables
from cnnbench.tasks.task import task_named

TASK = task_named("classification")

LATENCY = {"p50": 1.234, "p95": 5.678}
EVALUATED = {
    "run": "runs/a", "split": "test", "examples": 4, "top1": 0.5, "top5": 1.0, "loss": 0.70004,
    "nll": 0.6931, "ece": 0.0125, "params": 61_706, "macs": 416_520, "batch_size": 128,
    "throughput_images_per_s": 1234.5, "latency_ms": LATENCY, "peak_memory_mb": 345.6,
    "skipped_images": [], "target": None, "tta": "none", "confusion": [[1, 1], [1, 1]],
    "per_class": [
        {"class": "cat", "examples": 2, "top1": 0.5}, {"class": "dog", "examples": 2, "top1": None},
    ],
}  # fmt: skip


def printed(table, width=160) -> list[str]:
    """The lines of a table without the blanks between its cells."""
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]


def test_an_evaluation_has_each_number_in_its_unit():
    lines = printed(tables.evaluation(EVALUATED, TASK))
    for line in (
        "run runs/a",
        "split test, 4 examples",
        "top-1 0.5000",
        "top-5 1.0000",
        "loss 0.7000",
        "negative log-likelihood 0.6931",
        "calibration error 0.0125",
        "parameters 61,706",
        "MACs an image 416,520",
        "throughput 1234 images/s in batches of 128",
        "latency, 1 image p50 1.23 ms, p95 5.68 ms",
        "peak memory 346 MB",
        "class examples top-1",
        "cat 2 0.5000",
        "true \\ predicted 0 1",
        "1 dog 1 1",
    ):
        assert line in lines, line
    assert not [line for line in lines if line.startswith(("target", "artifact", "skipped"))]


def test_an_evaluation_tells_what_not_every_one_has():
    target = {
        "top1": 0.6, "tolerance": 0.0, "source": "a paper", "difference": -0.1, "reached": False,
    }  # fmt: skip
    more = {
        "artifact": "m.tflite", "skipped_images": ["a.jpg", "b.jpg"], "target": target,
        "throughput_images_per_s": None, "tta": "flip", "top1_without_tta": 0.25,
    }  # fmt: skip
    lines = printed(tables.evaluation(EVALUATED | more, TASK))
    assert "artifact m.tflite" in lines and "skipped images a.jpg, b.jpg" in lines
    assert "target 0.6000: missed by 0.1000; a paper" in lines
    assert "throughput unknown: too few batches" in lines
    assert "top-1 0.5000 with flip, 0.2500 without" in lines


def test_classes_beyond_twenty_are_left_to_the_file():
    many = [{"class": f"c{i}", "examples": 1, "top1": 1.0} for i in range(21)]
    confusion = [[0] * 21] * 21
    lines = printed(
        tables.evaluation(EVALUATED | {"per_class": many, "confusion": confusion}, TASK)
    )
    assert not [line for line in lines if "c0" in line or "predicted" in line]


ROW = {
    "format": "tflite", "precision": "int8", "path": "runs/a/exports", "size_bytes": 1_500_000,
    "top1": 0.9, "reference_top1": 0.91, "agreement": 0.995, "examples": 360,
    "max_abs_logit_diff": 0.1234, "latency_ms": LATENCY, "peak_memory_mb": 12.3,
    "best_batch": {"batch_size": 8, "images_per_s": 4321.0},
}  # fmt: skip


def test_an_export_has_its_proof():
    lines = printed(tables.exports([ROW], TASK))
    proof = "0.9000 0.9100 99.50% of 360 0.12 1.23 ms 4321 12 MB"
    assert f"tflite int8 1.50 MB {proof}" in lines
    assert "tflite int8 runs/a/exports" in lines


@pytest.mark.parametrize(
    ("absent", "changes", "line"),
    [
        ((), {"max_abs_logit_diff": None}, "99.50% of 360 NaN 1.23 ms 4321 12 MB"),
        (("best_batch",), {}, "99.50% of 360 0.12 1.23 ms 12 MB"),
        (("latency_ms",), {}, "tflite int8 1.50 MB not verified"),
        (("latency_ms", "path"), {"error": "no [ELU]"}, "tflite int8 failed"),
        (("latency_ms",), {"error": "no [ELU]"}, "tflite int8: no [ELU]"),
    ],
)
def test_an_export_without_some_of_it_says_so(absent, changes, line):
    row = {key: value for key, value in ROW.items() if key not in absent}
    found = printed(tables.exports([row | changes], TASK))
    assert any(each.endswith(line) for each in found)


def test_the_twenty_layers_that_int8_harms_most_are_named():
    layers = [
        {"layer": f"conv{i:02}", "operation": "CONV_2D", "relative_error": 0.5 - i / 100,
         "kept_float": i == 0}
        for i in range(21)
    ]  # fmt: skip
    lines = printed(tables.exports([ROW | {"layers": layers}], TASK))
    assert "conv00 CONV_2D 50.00% yes" in lines and "conv19 CONV_2D 31.00%" in lines
    assert not [line for line in lines if "conv20" in line]


def test_a_comparison_marks_the_best():
    row = {
        "name": "small", "precision": "float32", "top1": 0.5, "params": 1234, "macs": 5_678_901,
        "sparsity": 0.905, "size_bytes": 2_500_000, "zip_bytes": 250_000, "latency_ms": LATENCY,
    }  # fmt: skip
    rows = [row | {"is_best": True}, row | {"name": "large", "is_best": False}]
    lines = printed(tables.comparison({"rows": rows, "examples": 500, "score": asdict(TASK.score)}))
    numbers = "float32 0.5000 1,234 5,678,901 90.5% 2.50 MB 0.25 MB 1.23 ms"
    assert f"small {numbers} *" in lines and f"large {numbers}" in lines
    assert lines[-1] == "top-1 of TFLite files on at most 500 test images"


def test_a_file_is_named_once_before_its_classes():
    top = [{"class": "cat", "probability": 0.75}, {"class": "dog", "probability": 0.25}]
    lines = printed(tables.predictions([{"file": "a.png", "top": top}], TASK))
    assert lines[0] == "file class probability"
    assert lines[-2:] == ["a.png cat 0.7500", "dog 0.2500"]


def test_a_network_is_told_by_stage():
    stages = [{"stage": "stem", "output": [16, 16, 8], "layers": 3, "params": 1000, "macs": 51200}]
    rate = {"lr": 0.1, "batch_size": 512, "lr_per_256_images": 0.05}
    result = {"facts": {"input": [32, 32, 3], "params": 1000}, "stages": stages}
    lines = printed(tables.model(result))
    assert "input 32x32x3" in lines and "params 1,000" in lines
    assert "stem 16x16x8 3 1,000 51,200" in lines
    lines = printed(tables.model(result | {"learning_rate": rate, "recipe": "name: a\nseed: 1"}))
    told = "lr 0.1 at batch 512, i.e. 0.05 per 256 images (Goyal et al. 2017)"
    assert f"learning rate {told}" in lines and lines[-2:] == ["name: a", "seed: 1"]


def test_parts_are_told_by_their_keys():
    rows = [
        {"name": "x", "input": [28, 28, 1], "mean": (0.5, 0.25), "params": 5000, "target": None}
    ]
    lines = printed(tables.parts({"models": rows}))
    assert lines[0] == "name input mean params target"
    assert lines[-1] == "x 28x28x1 0.5, 0.25 5,000 None"
    assert printed(tables.parts({"models": []})) == ["nothing"]


def test_a_benchmark_has_a_column_each_measurement():
    rows = [
        {"recipe": "a", "mode": "infer", "batch_size": 1, "throughput_images_per_s": 12.5,
         "latency_ms": LATENCY},
        {"recipe": "a", "mode": "infer", "batch_size": 8, "throughput_images_per_s": 80.0,
         "waiting_for_data": 0.25},
    ]  # fmt: skip
    machine = {"cpu": "Xeon", "cores": 2}
    lines = printed(
        tables.benchmark({"rows": rows, "machine": machine, "peak_gflops_per_s": 55.55})
    )
    assert "processor Xeon, 2 cores" in lines and "matrix product 56 GFLOP/s" in lines
    assert "batch 1 8" in lines and "images/s 12.5 80.0" in lines
    assert "latency ms p50 1.234, p95 5.678" in lines and "waiting for data 0.25" in lines
    assert not [line for line in lines if "mode" in line or "infer" in line]


def test_a_profile_has_shares_of_the_time():
    operations = [{"operation": "Conv2D", "ms": 12.34, "share": 0.5}]
    lines = printed(
        tables.profile(
            {"steps": 10, "seconds": 1.5, "waiting_for_data": 0.125, "operations": operations}
        )
    )
    assert "waiting for data 12.5%" in lines and "Conv2D 12.3 50.0%" in lines


def test_names_are_printed_as_they_are():
    (line,) = printed(tables.facts({"class [red]": "[bold]a[/bold] \x1b[31m", "is_best": True}))[:1]
    assert line == r"class [red] [bold]a[/bold] \x1b[31m"


def test_a_long_cell_is_folded_and_nothing_of_it_lost():
    lines = printed(tables.facts({"path": "x" * 100}), width=40)
    assert "".join(lines).count("x") == 100 and len(lines) > 2
