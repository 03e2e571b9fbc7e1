"""Benchmarks: the keys that they promise, on a small network."""

import json
import resource

import pytest
from conftest import RECIPES, cnnbench

from cnnbench import load_recipe
from cnnbench.bench import benchmark, jobs, profile
from cnnbench.registry.kinds import AUGMENTATIONS
from cnnbench.system.measure import peak_memory_mb

RECIPE = """
name: tiny
model: {name: resnet20}
data: {name: digits, batch_size: 16, image_size: 16}
augment: [{name: random_crop, padding: 2}, {name: random_flip}]
optimizer: {name: momentum, lr: 0.05}
train: {epochs: 1}
"""


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)

    def run(*options):
        done = cnnbench("bench", path, "--rounds", 2, *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in options else done.stdout

    return run


def test_the_stem_counts(tmp_path):
    """One that keeps the size makes every convolution after it dearer."""

    def macs(stem):
        path = tmp_path / "x.yaml"
        model = f"mobilenet_v2, stem: {stem}"
        path.write_text(RECIPE.replace("resnet20", model).replace("size: 16", "size: 32"))
        return jobs.counting(load_recipe(path).dump())()

    assert macs("cifar") > 8 * macs("imagenet")


class Here:
    """Runs a job in this process, where TensorFlow is imported; test_workers is about others."""

    def __init__(self, build, *arguments, environment=None):
        self._work = build(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ready(self, timeout_s):
        return 0.5

    def round(self, timeout_s):
        return self._work()

    def peak_memory_mb(self):
        return peak_memory_mb()


@pytest.fixture
def digits(monkeypatch):
    """The recipe of LeNet; every job is real, runs in this process, and only as long as it must."""
    for module in (benchmark, profile):
        monkeypatch.setattr(module, "Worker", Here)
    monkeypatch.setattr(benchmark, "LATENCY_CALLS", 10)
    for module in (benchmark, jobs):
        monkeypatch.setattr(module, "MATRIX_SIDE", 256)
    monkeypatch.setattr(jobs, "ROUND_SECONDS", 0.05)
    # The limit would hold for the tests after this one.
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    return load_recipe(RECIPES / "lenet5_digits.yaml", ("data.batch_size=16",))


MACS = 416_520


def check_speed(result, row, mode, macs):
    """Checks what the rows of training and of inference have alike."""
    assert (row["recipe"], row["model"], row["mode"]) == ("lenet5_digits", "lenet5", mode)
    assert row["input"] == [32, 32, 1]
    low, high = row["spread"]
    assert 0 < low <= row["throughput_images_per_s"] <= high
    # Two operations a multiply-accumulate; the row has two decimals of 1e9 operations.
    operations = 2 * macs * row["throughput_images_per_s"] / 1e9
    assert row["gflops_per_s"] == pytest.approx(operations, abs=0.006)
    assert row["share_of_peak"] == pytest.approx(operations / result["peak_gflops_per_s"], rel=0.1)
    assert row["peak_memory_mb"] > 100


def test_training_steps_are_measured(digits):
    result = benchmark.bench([digits], "train", rounds=1, tune=False)
    assert result["peak_gflops_per_s"] > 0.1 and result["machine"]["cores"] > 0
    (row,) = result["rows"]
    check_speed(result, row, "train", 3 * MACS)  # of the gradients twice as many
    assert row["batch_size"] == 16 and row["seconds_to_first_step"] == 0.5
    assert row["runtime"] in ("onednn", "neither") and row["largest_batch"] > 16
    assert "stock_throughput_images_per_s" not in row


def test_answers_are_measured_by_batch(digits):
    result = benchmark.bench([digits], "infer", rounds=1)
    assert [row["batch_size"] for row in result["rows"]] == [1, 8, 32, 128]
    for row in result["rows"]:
        check_speed(result, row, "infer", MACS)
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]


def test_reading_is_measured_with_and_without_each_augmentation(digits):
    rotating = digits.model_copy(update={"augment": [AUGMENTATIONS.spec("random_rotation")]})
    (row,) = benchmark.bench([rotating], "data", rounds=1)["rows"]
    assert row["throughput_images_per_s"] > 0 and row["mode"] == "data"
    assert set(row["augmentation_us_per_image"]) == {"random_rotation"}
    assert row["without_augmentation_images_per_s"] > 0 and row["training_images_per_s"] > 0
    assert 0 <= row["waiting_for_data"] <= 1 and "gflops_per_s" not in row


@pytest.mark.slow
def test_training_is_compared_with_stock_keras(bench):
    result = bench("--no-tune", "--compare-stock", "--json")
    assert result["peak_gflops_per_s"] > 1 and result["machine"]["cores"] > 0
    (row,) = result["rows"]
    low, high = row["spread"]
    assert 0 < low <= row["throughput_images_per_s"] <= high
    ratio = row["throughput_images_per_s"] / row["stock_throughput_images_per_s"]
    low, high = row["ratio_spread"]
    assert low <= row["ratio_to_stock"] <= high and ratio == pytest.approx(
        row["ratio_to_stock"], rel=0.5
    )
    # Three times the network's, two operations each; the stem sees one channel, not three.
    macs = (40_551_040 - 2 * 9 * 16 * 32 * 32) / 4
    flops = 2 * 3 * macs * row["throughput_images_per_s"]
    assert row["gflops_per_s"] == pytest.approx(flops / 1e9, rel=0.01)
    assert row["largest_batch"] > 100 and row["peak_memory_mb"] > 100
    assert row["seconds_to_first_step"] > 0 and row["input"] == [16, 16, 1]


@pytest.mark.slow
def test_inference_is_measured_by_batch(bench):
    rows = bench("--mode", "infer", "--json")["rows"]
    assert [row["batch_size"] for row in rows] == [1, 8, 32, 128]
    assert all(0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"] for row in rows)


@pytest.mark.slow
def test_reading_is_measured_by_augmentation(bench):
    (row,) = bench("--mode", "data", "--json")["rows"]
    assert row["throughput_images_per_s"] > 0
    assert set(row["augmentation_us_per_image"]) == {"random_crop", "random_flip"}
    assert row["training_images_per_s"] > 0 and 0 <= row["waiting_for_data"] <= 1


@pytest.mark.slow
def test_a_profile_names_the_dearest_operations(bench, tmp_path):
    result = bench("--profile", tmp_path / "trace", "--json")
    names = [row["operation"] for row in result["operations"]]
    assert len(names) == 10 and any("Conv2D" in name for name in names)
    assert 0 <= result["waiting_for_data"] <= 1
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_told_with_the_largest_that_does(tmp_path):
    path = tmp_path / "huge.yaml"
    data = "synthetic, batch_size: 60000, examples: 60000"
    path.write_text(RECIPE.replace("digits, batch_size: 16", data).replace("size: 16", "size: 64"))
    done = cnnbench("bench", path, "--no-tune")
    assert done.returncode == 2 and "images fit in memory" in done.stderr
