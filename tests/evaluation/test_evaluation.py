"""Evaluation: test-time augmentation, robustness and targets, and the command that shows them."""

import io
import json
import shutil

import numpy as np
import pytest
from conftest import SMALL, here
from rich.console import Console
from typed import problems

from cnnbench import evaluate, load_recipe, open_run, train
from cnnbench.backend.lazy import tf
from cnnbench.data.open import Access
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import evaluation_examples
from cnnbench.evaluation.corruptions import CORRUPTIONS, SEVERITIES, draws
from cnnbench.evaluation.evaluate import Evaluation, _reached
from cnnbench.evaluation.robustness import robustness
from cnnbench.report import tables
from cnnbench.runs import network
from cnnbench.tasks.task import task_named

LENET = SMALL.replace("resnet8", "lenet5")
ONE_EPOCH = ("train.epochs=1", "schedule.warmup_epochs=0")


def trained(folder, *settings):
    (folder / "recipe.yaml").write_text(LENET)
    return train(load_recipe(folder / "recipe.yaml", ONE_EPOCH + settings), run_dir=folder / "run")


Target = task_named("classification").score.target_type()


@pytest.fixture
def run(digits_run, tmp_path):
    """A copy of the digits' run, whose files nobody else reads."""
    shutil.copytree(digits_run.path, tmp_path / "digits")
    return open_run(tmp_path / "digits")


@pytest.fixture(scope="module")
def test_images(digits_run):
    dataset = network.open_data(digits_run, Access())
    examples, _ = evaluation_examples(dataset, digits_run.recipe.data, "test")
    (batch,) = evaluation_batches(examples, digits_run.recipe.data, (32, 32), 360)
    return batch[:2]


def printed(result) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(tables.evaluation(result, task_named("classification")))
    return console.file.getvalue()


def test_flip_is_the_mean_of_the_logits_of_an_image_and_its_mirror(run, test_images):
    images, labels = test_images
    net = network.restore(run)
    logits = (net(images)["logits"] + net(images[:, :, ::-1])["logits"]).numpy() / 2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = evaluate(run, tta="flip")
    assert result["tta"] == "flip"
    assert result["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert result["nll"] == pytest.approx(-np.log(p[range(360), labels]).mean(), rel=1e-3)
    plain = evaluate(run)
    assert plain["tta"] == "none" and "top1_without_tta" not in plain
    assert result["top1_without_tta"] == plain["top1"] != result["top1"]


def test_the_recipe_says_which_augmentation_and_an_argument_overrides_it(tmp_path):
    run = trained(tmp_path, "evaluation.tta=flip_shift")
    assert evaluate(run)["tta"] == "flip_shift"
    assert json.loads((run.path / "eval.json").read_text())["tta"] == "flip_shift"
    assert evaluate(run, tta="none")["tta"] == "none"


def test_robustness_equals_a_plain_count(run, test_images):
    images, labels = (x[:50] for x in test_images)
    result = evaluate(run, robust_examples=50)
    robust = result["robust"]
    net = network.restore(run)
    for name in ("contrast", "impulse_noise", "elastic_transform"):
        for severity in SEVERITIES:
            corrupted = [
                CORRUPTIONS[name](image, severity, draws(name, severity, position))
                for position, image in enumerate(images)
            ]
            right = net(np.stack(corrupted))["logits"].numpy().argmax(1) == labels
            assert robust["corruptions"][name][severity - 1] == pytest.approx(right.mean())
    assert robust["examples"] == 50 and list(robust["corruptions"]) == list(CORRUPTIONS)
    mean = np.mean([robust["corruptions"][name] for name in CORRUPTIONS])
    assert robust["mean_corruption_accuracy"] == pytest.approx(mean)
    assert robust["mean_corruption_error"] == pytest.approx(1 - mean)
    assert result["top1"] > mean > 0.3
    assert robust["corruptions"]["contrast"][4] < robust["corruptions"]["contrast"][0]
    assert json.loads((run.path / "eval-robust.json").read_text())["robust"] == robust


def test_robustness_does_not_depend_on_the_size_of_a_batch(run):
    dataset = network.open_data(run, Access())
    examples, _ = evaluation_examples(dataset, run.recipe.data, "test")
    net = network.restore(run)
    answer = tf.function(net.answer)
    few, all_at_once = (
        robustness(
            lambda images, targets: net.task.hits(answer(images), targets),
            evaluation_batches(examples.take(slice(6)), run.recipe.data, (32, 32), size),
        )
        for size in (4, 6)
    )
    assert few == all_at_once


@pytest.mark.parametrize(
    ("top1", "tolerance", "reached", "words"),
    [
        (0.9167, 0.0, True, "reached, 0.0042 above"),
        (0.9125, 0.0, True, "reached, 0.0000 above"),
        (0.9002, 0.003, False, "missed by 0.0123"),
        (0.9105, 0.003, True, "reached, 0.0020 below, within 0.0030"),
    ],
)
def test_a_target_is_reached_or_missed_by_how_much(top1, tolerance, reached, words):
    found = _reached(Target(top1=0.9125, tolerance=tolerance, source="x"), 0.9125, top1)
    assert found["reached"] is reached
    assert found["difference"] == pytest.approx(top1 - 0.9125)
    assert tables.verdict(found) == words


def test_a_target_is_reached_where_its_tolerance_just_allows_it():
    assert 0.4996 < 0.5006 - 0.001  # in binary
    assert _reached(Target(top1=0.5006, tolerance=0.001, source="x"), 0.5006, 0.4996)["reached"]


def test_the_table_has_what_was_measured(run):
    result = evaluate(run, tta="flip", robust_examples=2)
    assert not problems(result, Evaluation)
    text = printed(result)
    for name, key in (("negative log-likelihood", "nll"), ("calibration error", "ece")):
        assert any(name in line and f"{result[key]:.4f}" in line for line in text.splitlines())
    assert f"with flip, {result['top1_without_tta']:.4f} without" in text
    assert tables.verdict(result["target"]) in text
    assert "the first 2 examples" in text and "frost is synthetic: not comparable" in text
    for name, row in result["robust"]["corruptions"].items():
        cells = "   ".join(f"{top1:.4f}" for top1 in (*row, np.mean(row)))
        assert any(
            line.split()[: len(name.split("_"))] == name.split("_") and cells in line
            for line in text.splitlines()
        )


def test_a_target_that_is_missed_ends_with_5_and_the_result_is_kept(tmp_path):
    run = trained(tmp_path, "target={top1: 1.0, source: all}")
    (run.path / "eval-flip_shift-robust.json").unlink(missing_ok=True)
    options = ("--require-target", "--robust", "--robust-examples", 3, "--tta", "flip_shift")
    done = here("eval", run.path, *options, "--json")
    assert done.returncode == 5, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((run.path / "eval-flip_shift-robust.json").read_text())
    assert f"missed by {1 - result['top1']:.4f}" in done.stderr and "Traceback" not in done.stderr
    assert result["robust"]["examples"] == 3 and result["tta"] == "flip_shift"
    without = here("eval", run.path)
    assert without.returncode == 0
    assert f"missed by {1 - json.loads((run.path / 'eval.json').read_text())['top1']:.4f}" in (
        without.stdout
    )


@pytest.mark.slow
def test_a_target_that_is_reached_ends_with_0(tmp_path):
    run = trained(tmp_path, "target={top1: 0.01, source: chance}")
    done = here("eval", run.path, "--require-target")
    assert done.returncode == 0, done.stderr
    assert "0.0100: reached, " in done.stdout and " above; chance" in done.stdout


def test_what_cannot_be_required_is_refused(tmp_path):
    run = trained(tmp_path)
    done = here("eval", run.path, "--require-target")
    assert done.returncode == 2 and "has no target" in done.stderr
    assert not (run.path / "eval.json").exists()
    for options, words in (
        (("--require-target", "--split", "validation"), "requires --split test"),
        (("--robust-examples", 5), "requires --robust"),
        (("--tta", "spin"), "flip_shift"),
    ):
        done = here("eval", run.path, *options)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_augmentation_in_a_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(LENET + "evaluation:\n  tta: spin\n")
    done = here("train", tmp_path / "recipe.yaml")
    assert done.returncode == 2
    assert "recipe.yaml:12: evaluation.tta: 'spin'" in done.stderr and "'flip'" in done.stderr
