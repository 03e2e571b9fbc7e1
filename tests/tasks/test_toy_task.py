"""A task that the package does not know trains, resumes, evaluates and exports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cnnbench import load_recipe
from cnnbench.errors import RecipeError


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    script = Path(__file__).with_name("use_toy_task.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_a_recipe_takes_the_defaults_of_the_task(used):
    _, found = used
    assert (found["task"], found["loss"], found["metric"]) == (
        "regression",
        "squared_error",
        "closeness",
    )


def test_it_trains_and_resumes_at_the_very_step(used):
    folder, _ = used
    rows = [
        [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "halves")
    ]
    for row in rows[0] + rows[1]:
        del row["seconds"], row["throughput_images_per_s"]
    assert rows[0] == rows[1] and len(rows[0]) == 12
    assert rows[0][-1]["validation"]["closeness"] > rows[0][0]["validation"]["closeness"]
    weights = [folder / run / "best" / "arrays.safetensors" for run in ("whole", "halves")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_it_is_evaluated_by_its_own_score(used):
    _, found = used
    assert found["evaluation"]["target"]["reached"] and found["evaluation"]["closeness"] > 0.9
    assert "top1" not in found["evaluation"]
    (row,) = found["prediction"]
    assert row["value"] == pytest.approx(128 / 255, abs=0.1)


def test_it_reads_the_names_of_photographs(used):
    _, found = used
    check = found["check"]
    assert (check["images"], check["unlabelled"], check["refusal"]) == (1, 1, "not the brightness")
    assert check["closeness"] > 0.8 and "top1" not in check


def test_its_exports_are_verified_by_it(used):
    _, found = used
    assert [row["format"] for row in found["rows"]] == ["onnx"]
    assert all(row["passed"] and row["max_abs_diff"] <= 1e-4 for row in found["rows"])


def test_people_read_its_words(used):
    _, found = used
    output = found["output"]
    assert "closeness" in output["eval"] and "reached" in output["eval"]
    assert "difference" in output["export"] and "value" in output["predict"]
    assert not any("top-1" in text for text in output.values())


def test_what_does_not_serve_the_task_of_a_network_is_refused(small):
    from cnnbench.registry.kinds import LOSSES

    entry = LOSSES.get("focal")
    facts = dict(entry.facts)
    try:
        object.__setattr__(entry, "facts", {**facts, "tasks": ("detection",)})
        with pytest.raises(RecipeError, match="focal is for detection, resnet8 for classification"):
            load_recipe(small, ("loss={name: focal}",))
    finally:
        object.__setattr__(entry, "facts", facts)
