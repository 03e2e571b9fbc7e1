"""Benchmarks: the keys that they promise, on a small network."""

import json

import pytest
from conftest import cnnbench

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
    from cnnbench import load_recipe
    from cnnbench.bench import jobs

    def macs(stem):
        path = tmp_path / "x.yaml"
        model = f"mobilenet_v2, stem: {stem}"
        path.write_text(RECIPE.replace("resnet20", model).replace("size: 16", "size: 32"))
        return jobs.counting(load_recipe(path).dump())()

    assert macs("cifar") > 8 * macs("imagenet")


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
