"""Comparison: files that are really written and run, and the best among them."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from typed import problems

from cnnbench import load_recipe, train
from cnnbench.errors import UsageError
from cnnbench.evaluation.compare import Comparison, _beats, compare
from cnnbench.report import plots
from cnnbench.runs.network import restore


def compressed(digits_run, path, stages, epochs):
    """Trains the digits' run on through these stages; returns the folder of all of them."""
    settings = (f"init={{run: {digits_run.path}}}", f"compress={stages}", f"train.epochs={epochs}")
    path.with_suffix(".yaml").write_text(digits_run.recipe.dump())
    train(load_recipe(path.with_suffix(".yaml"), settings), run_dir=path)
    return path


@pytest.mark.slow
def test_runs_are_compared_with_what_they_began_with_which_is_told_once(digits_run, tmp_path):
    both = "[{name: prune, sparsity: 0.9, every: 5}, {name: qat}]"
    folder = compressed(digits_run, tmp_path / "one", both, 2)
    result = compare([folder, digits_run.path], examples=200)
    assert not problems(result, Comparison)
    dense, pruned, quantized = result["rows"]
    runs = [digits_run.path.absolute(), folder / "1-prune", folder / "2-qat"]
    assert [row["run"] for row in result["rows"]] == list(map(str, runs))
    assert [row["precision"] for row in result["rows"]] == ["float32", "float32", "int8"]
    assert pruned["zip_bytes"] < dense["zip_bytes"]
    assert dense["sparsity"] < 0.01 and pruned["sparsity"] == pytest.approx(0.9, abs=0.02)
    assert pruned["size_bytes"] == pytest.approx(dense["size_bytes"], rel=0.01)
    assert pruned["zip_bytes"] < 0.4 * dense["zip_bytes"]
    assert quantized["size_bytes"] < 0.5 * dense["size_bytes"]
    assert quantized["zip_bytes"] < pruned["zip_bytes"]
    assert dense["params"] == restore(digits_run).model.count_params()
    assert quantized["is_best"]  # for no other is as small
    plots.pareto(result, tmp_path / "pareto.png")
    pixels = np.array(Image.open(tmp_path / "pareto.png"))
    assert pixels.shape[0] > 300 and pixels.std() > 5


def test_one_network_beats_another_where_it_is_nowhere_worse():
    one = {"top1": 0.9, "zip_bytes": 10, "latency_ms": {"p50": 1.0}}
    beats = partial(_beats, score="top1")
    assert not beats(one, one)
    assert beats(one | {"top1": 0.91}, one) and beats(one | {"zip_bytes": 9}, one)
    assert not beats(one | {"top1": 0.91, "zip_bytes": 11}, one)


def test_the_front_is_what_no_smaller_one_reaches():
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 79.0), (4.0, 90.0), (1.0, 70.0)]
    assert plots._front(points) == [(1.0, 80.0), (3.0, 90.0)]


def test_a_run_named_twice_is_refused(digits_run):
    with pytest.raises(UsageError, match="given twice"):
        compare([digits_run.path, digits_run.path])
