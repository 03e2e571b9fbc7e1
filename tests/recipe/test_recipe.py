"""Recipes: reading, checking, overriding and writing."""

from dataclasses import replace

import pytest
from conftest import SMALL

from cnnbench import load_recipe
from cnnbench.errors import RecipeError
from cnnbench.recipe import yaml_tree
from cnnbench.recipe.load import check
from cnnbench.recipe.recipe import Recipe
from cnnbench.registry.kinds import SCHEDULES


def test_the_resolved_recipe_reads_back_to_the_same_bytes(small, tmp_path):
    once = load_recipe(small).dump()
    (tmp_path / "resolved.yaml").write_text(once)
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again == load_recipe(small)
    assert again.dump() == once


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1.0e-4", 1e-4), (".5", 0.5), ("-2", -2), ("no", "no"), ("on", "on"),
        ("012", 12), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("~", None), ("true", True),
        ("'1'", "1"), ("0x1f", "0x1f"), ("1_000", "1_000"), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    found = yaml_tree.parse(f"key: {text}", "file").plain()["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", ["1e-3", "no", "true", "null", "~", "", "012", "a: b", "é"])
def test_strings_survive_writing(value):
    text = yaml_tree.dump({"key": value})
    assert yaml_tree.parse(text, "file").plain() == {"key": value}


def test_set_replaces_adds_and_indexes(small):
    recipe = load_recipe(
        small, ("train.epochs=7", "augment.0.padding=3", "loss.name=mean_squared_error")
    )
    assert recipe.train.epochs == 7
    assert recipe.augment[0].options()["padding"] == 3
    assert recipe.loss.name == "mean_squared_error"


@pytest.mark.parametrize("assignment", ["seed", "=3", "augment.9.name=x", "augment.x=3", "a..b=1"])
def test_a_bad_assignment_is_refused(small, assignment):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(small, (assignment,))


def test_places_are_file_and_line():
    tree = yaml_tree.parse("a: 1\nb:\n  c: 2\n  d: [3,\n    4]\n", "file")
    assert tree.at(("b", "c")).where == "file:3"
    assert tree.at(("b", "d", 1)).where == "file:5"


def test_options_come_from_the_signature_of_the_builder(small):
    recipe = load_recipe(small)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "velocity": "steps"}
    assert recipe.optimizer.options() == options
    assert recipe.model.options()["dropout"] == 0.1


def test_what_is_missing_is_named():
    with pytest.raises(RecipeError) as caught:
        check(yaml_tree.parse("name: x", "file"))
    words = str(caught.value)
    assert all(f"'{key}' is missing" in words for key in ("model", "data", "optimizer", "train"))


def test_the_schema_is_json():
    assert Recipe.model_json_schema()["additionalProperties"] is False


@pytest.mark.parametrize(("settings", "where", "words"), [
    (("loss={name: focal}", "augment=[{name: mixup}]"), "augment.0", "loss focal does not support"),
    (("augment=[{name: random_flip}, {name: random_resized_crop}]",), "augment.1", "come before"),
    (("augment=[{name: mixup, alpha: 0.0}]",), "augment.0.alpha", "greater than 0"),
])  # fmt: skip
def test_augmentations_that_do_not_fit_are_refused(small, settings, where, words):
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(small, settings)
    assert where in str(caught.value)


@pytest.mark.parametrize("first", ["mixup", "cutmix", "mixup_or_cutmix"])
@pytest.mark.parametrize("second", ["mixup", "cutmix"])
def test_two_augmentations_that_mix_are_refused(small, first, second):
    augment = f"augment=[{{name: {first}}}, {{name: random_flip}}, {{name: {second}}}]"
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, (augment,))
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"augment.2: {second} after {first}")
    assert "mixup_or_cutmix" in str(problem.allowed)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup_or_cutmix"])
def test_one_augmentation_that_mixes_is_taken(small, name):
    load_recipe(small, (f"augment=[{{name: random_flip}}, {{name: {name}}}]",))


@pytest.mark.parametrize(("settings", "where", "words"), [
    (("train={steps: 9}", "schedule.warmup_epochs=2"), "schedule.warmup_epochs", "than the 9"),
    (("train={examples: 160}", "schedule.warmup_epochs=2"), "schedule.warmup_epochs", "the 10 "),
    (
        ("train={steps: 50, image_sizes: [{until: 1, size: 12}]}", "schedule.warmup_epochs=0"),
        "train.image_sizes.0.until",
        "epoch 1 ends at step 89, .* before the 50 steps",
    ),
    (("schedule={name: one_cycle, warmup_epochs: 1}",), "schedule.warmup_epochs", "its own"),
    (("optimizer={name: sgd, lr: 0.1, nesterov: true}",), "optimizer.nesterov", "momentum"),
    (("augment=[{name: cutout, size: 31}]",), "augment.0.size", "16x16 pixels; must be at most"),
    (("augment=[{name: random_crop, padding: 17}]",), "augment.0.padding", "at most 16"),
    (
        ("augment=[{name: random_crop, padding: 16, mode: reflect}]",),
        "augment.0.padding",
        "at most 15",
    ),
])  # fmt: skip
def test_trainings_that_make_no_sense_are_refused(small, settings, where, words):
    data = "data={name: digits, image_size: 16, batch_size: 16}"
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(small, (data, *settings))
    assert where in str(caught.value)


PENALTY = "regularization={l2: 1.0e-4, l1: 0.0}"


@pytest.mark.parametrize(("settings", "where", "words"), [
    (
        (PENALTY, "optimizer={name: adamw, lr: 0.1}"),
        "l2",
        r"0\.0001 and weight_decay 0\.01 of adamw would shrink the kernels twice",
    ),
    ((PENALTY, "optimizer={name: sgd, lr: 0.1, weight_decay: 0.2}"), "l2", r"0\.2 of sgd"),
    ((PENALTY, "optimizer={name: lars, lr: 0.1, weight_decay: 0.2}"), "l2", r"0\.2 of lars"),
    (
        ("regularization={l1: 0.5}", "optimizer={name: lion, lr: 0.1, weight_decay: 0.2}"),
        "l1",
        r"0\.5 and .* 0\.2 of lion",
    ),
])  # fmt: skip
def test_a_penalty_and_a_weight_decay_together_are_refused(small, settings, where, words):
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(small, settings)
    (problem,) = caught.value.problems
    assert problem.what.startswith(f"regularization.{where}: ")
    assert problem.allowed == f"set optimizer.weight_decay or regularization.{where} to 0"


def test_a_penalty_and_a_weight_decay_are_refused_with_file_and_line(tmp_path):
    path = tmp_path / "twice.yaml"
    text = SMALL.replace("momentum, lr: 0.05", "adamw, lr: 0.05")
    path.write_text(text)
    line = text[: text.index("regularization")].count("\n") + 1
    with pytest.raises(RecipeError, match=rf"twice\.yaml:{line}: regularization\.l2: "):
        load_recipe(path)


@pytest.mark.parametrize("settings", [
    (PENALTY, "optimizer={name: adamw, lr: 0.1, weight_decay: 0.0}"),
    (PENALTY, "optimizer={name: adam, lr: 0.1}"),
    ("regularization={l2: 1.0e-4, l1: 1.0e-4}",),
    ("regularization={l2: 0.0}", "optimizer={name: adamw, lr: 0.1}"),
])  # fmt: skip
def test_penalties_or_a_weight_decay_alone_are_taken(small, settings):
    load_recipe(small, settings)


def test_stages_with_epochs_of_their_own_are_not_judged_by_the_steps_of_training(small):
    settings = (
        "data={name: digits, image_size: 16, batch_size: 16}",
        "train={steps: 10, image_sizes: [{until: 1, size: 12}]}",
        "compress=[{name: prune, sparsity: 0.5, epochs: 9}]",
    )
    assert load_recipe(small, settings).compress[0].epochs == 9


def test_warm_up_is_refused_with_every_schedule_that_has_its_own(small, monkeypatch):
    load_recipe(small, ("schedule={name: cosine, warmup_epochs: 1}",))
    cosine = SCHEDULES.get("cosine")
    monkeypatch.setitem(SCHEDULES._entries, "cosine", replace(cosine, facts={"own_warmup": True}))
    with pytest.raises(RecipeError, match="cosine, which has its own warm-up"):
        load_recipe(small, ("schedule={name: cosine, warmup_epochs: 1}",))
