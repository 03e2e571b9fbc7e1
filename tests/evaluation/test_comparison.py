"""Comparison: files that are really written and run, and the best among them."""

import json
import shutil

import numpy as np
import pytest
from conftest import resign
from PIL import Image

from cnnbench import load_recipe, train
from cnnbench.errors import UsageError
from cnnbench.evaluation import compare as compare_module
from cnnbench.evaluation.compare import _beats, compare
from cnnbench.registry.kinds import COMPRESSIONS
from cnnbench.report import plots
from cnnbench.runs.network import restore
from cnnbench.runs.run import STAGES, Run


@pytest.fixture(scope="module")
def folder(digits_run, tmp_path_factory):
    """A pruned and then quantized LeNet, in two stages."""
    path = tmp_path_factory.mktemp("stages") / "run"
    stages = "[{name: prune, sparsity: 0.9, every: 5}, {name: qat}]"
    settings = (f"init={{run: {digits_run.path}}}", f"compress={stages}", "train.epochs=2")
    recipe = digits_run.recipe.dump()
    (path.parent / "digits.yaml").write_text(recipe)
    train(load_recipe(path.parent / "digits.yaml", settings), run_dir=path)
    return path


def test_stages_are_compared_with_what_they_began_with(folder, digits_run, tmp_path):
    result = compare([folder], examples=200)
    dense, pruned, quantized = result["rows"]
    assert dense["run"] == str(digits_run.path.absolute())
    assert [row["precision"] for row in result["rows"]] == ["float32", "float32", "int8"]
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
    assert not _beats(one, one)
    assert _beats(one | {"top1": 0.91}, one) and _beats(one | {"zip_bytes": 9}, one)
    assert not _beats(one | {"top1": 0.91, "zip_bytes": 11}, one)


def test_the_front_is_what_no_smaller_one_reaches():
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 79.0), (4.0, 90.0), (1.0, 70.0)]
    assert plots._front(points) == [(1.0, 80.0), (3.0, 90.0)]


def test_what_two_begin_with_is_told_once(digits_run, tmp_path, monkeypatch):
    for name in ("one", "other"):
        folder = tmp_path / name / "1-prune"
        shutil.copytree(digits_run.path, folder)
        environment = json.loads((folder / "environment.json").read_text())
        environment["runs"] = {
            "init": {"path": str(digits_run.path), "weights_sha256": digits_run.weights_sha256()}
        }
        resign(Run(folder, digits_run.recipe), environment)
        recipe = digits_run.recipe.model_copy(
            update={"compress": [COMPRESSIONS.spec("prune", sparsity=0.5)]}
        )
        (tmp_path / name / STAGES).write_text(recipe.dump())
    paths = [digits_run.path, tmp_path / "one", tmp_path / "other"]
    monkeypatch.setattr(compare_module, "_row", lambda run, *_: {"name": run.path.parent.name})
    monkeypatch.setattr(compare_module, "_beats", lambda one, other: False)
    names = [row["name"] for row in compare(paths)["rows"]]
    assert names == [digits_run.path.parent.name, "one", "other"]


def test_a_run_named_twice_is_refused(digits_run):
    with pytest.raises(UsageError, match="named twice"):
        compare([digits_run.path, digits_run.path])
