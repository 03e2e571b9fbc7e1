"""What `list` tells of each kind of part."""

import json

import pytest
from click.testing import CliRunner
from conftest import RECIPES
from typed import problems

from cnnbench import load_recipe
from cnnbench.cli import cli
from cnnbench.models.build import build_model
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.models.pretrained.presets import PRESETS
from cnnbench.report.describe import ModelRow

OPTIONS = {
    "datasets": {
        "digits": "",
        "image_folder": "path",
        "synthetic": "examples=512, shape=[32, 32, 3]",
        "tfds": "builder, train_split='train', test_split='test', image_key=None, label_key=None",
    },
    "augmentations": {
        "mixup": "alpha=0.2, probability=1.0",
        "random_crop": "padding=4, mode='constant'",
        "random_flip": "probability=0.5",
    },
    "optimizers": {
        "adamw": "lr, weight_decay=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-07",
        "sgd": "lr, momentum=0.0, nesterov=False, weight_decay=0.0, velocity='steps'",
    },
    "schedules": {"constant": "", "cosine": "final=0.0", "step": "epochs, factor=0.1"},
    "losses": {"cross_entropy": "label_smoothing=0.0", "focal": "alpha=0.25, gamma=2.0"},
    "compressions": {
        "distill": "teacher, temperature=4.0, share=0.9, hints=0.0",
        "qat": "bits=8",
    },
}
# A word of each summary.
WORDS = {
    "digits": "scikit-learn", "mixup": "Beta(alpha, alpha)", "adamw": "Loshchilov & Hutter 2019",
    "cosine": "final", "focal": "Lin et al. 2017", "qat": "Jacob et al. 2018",
}  # fmt: skip


def listed(what) -> dict:
    """The rows of a kind by their names."""
    done = CliRunner().invoke(cli, ["list", what, "--json"])
    assert done.exit_code == 0, done.output
    (rows,) = json.loads(done.stdout).values()
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_part_has_its_options_and_a_summary(kind):
    rows = listed(kind)
    assert {name: rows[name]["options"] for name in OPTIONS[kind]} == OPTIONS[kind]
    for name, row in rows.items():
        assert set(row) == {"name", "options", "about"}
        assert row["about"].endswith(".") and WORDS.get(name, "") in row["about"]
    assert WORDS.keys() & rows.keys()


def test_a_network_has_its_size_cost_input_and_source():
    rows = listed("models")
    assert rows["resnet50"] == {
        "name": "resnet50", "family": "resnet", "params": 25_557_032, "macs": 4_089_184_256,
        "input": [224, 224, 3], "source": rows["resnet50"]["source"],
    }  # fmt: skip
    assert not problems(rows["resnet50"], ModelRow)
    assert "He et al. 2015" in rows["resnet50"]["source"]
    for name in ("lenet5", "resnet20"):
        built = build_model(name, tuple(rows[name]["input"]), 10)
        assert rows[name]["params"] == count_params(built)
        assert rows[name]["macs"] == count_macs(built)
    assert all(row.keys() == rows["lenet5"].keys() and row["source"] for row in rows.values())


def test_published_weights_have_their_address_and_statistics():
    rows = listed("presets")
    assert rows.keys() == PRESETS.keys()
    row = rows["resnet18.tv_in1k"]
    assert row["model"] == "resnet18" and row["classes"] == 1000
    assert row["address"].startswith("https://") and len(row["sha256"]) == 64
    assert row["mean"] == [0.485, 0.456, 0.406] and row["licence"] == "BSD-3-Clause"


def test_published_networks_say_what_they_need_and_which_are_not_importable():
    rows = listed("weights")
    assert rows["timm:efficientnet_b0"] == {
        "name": "timm:efficientnet_b0", "model": "efficientnet_b0",
        "options": "padding='symmetric', epsilon=1e-05", "color": "rgb",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "importable": "yes",
    }  # fmt: skip
    assert rows["timm:resnetblur50"]["importable"] == "no: anti-aliasing"
    assert rows["timm:nasnetalarge"]["model"] == "nasnet_large"
    assert rows["keras:ResNet50"]["color"] == "bgr"


def test_a_recipe_has_its_network_data_and_target():
    rows = listed("recipes")
    assert rows.keys() == {path.stem for path in RECIPES.glob("*.yaml")}
    recipe = load_recipe(RECIPES / "resnet20_cifar10.yaml")
    assert rows["resnet20_cifar10"] == {
        "name": "resnet20_cifar10", "model": "resnet20", "data": "cifar10",
        "target": recipe.target.top1,
    }  # fmt: skip
    assert None in {row["target"] for row in rows.values()}


def test_people_get_a_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = CliRunner().invoke(cli, ["list", "losses"]).stdout.splitlines()
    assert lines[1].split() == ["name", "options", "about"]
    assert any(line.split()[:3] == ["focal", "alpha=0.25,", "gamma=2.0"] for line in lines)
