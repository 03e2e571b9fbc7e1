"""Tuning: what is measured, what is remembered, and what happens when it goes wrong."""

import json
from dataclasses import asdict

import pytest
from conftest import RECIPES, cnnbench, resign

from cnnbench import load_recipe
from cnnbench.backend.settings import ONEDNN, Settings, apply, uses_onednn
from cnnbench.bench import autotune
from cnnbench.errors import RunError, UsageError
from cnnbench.recipe import stand_in
from cnnbench.recipe.sections import Runtime
from cnnbench.runs.run import open_run
from cnnbench.system.processes import WorkerError
from cnnbench.training.one_stage import train

LONG = float("inf")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def recipe(small):
    return load_recipe(small)


def no_measurement(*_):
    raise AssertionError("nothing is to be measured")


@pytest.mark.slow
def test_every_candidate_is_measured_and_the_fastest_is_remembered(recipe, monkeypatch):
    told = []
    choice = autotune.choose(recipe, seconds=LONG, tell=told.append)
    assert choice.reason == "measured" and not choice.notes
    assert len(told) == 1 and "onednn, neither, xla" in told[0]
    assert set(choice.seconds_per_step) == {"onednn", "neither", "xla"}
    assert all(seconds > 0 for seconds in choice.seconds_per_step.values())
    assert autotune.name(choice.settings) == min(
        choice.seconds_per_step, key=choice.seconds_per_step.get
    )
    monkeypatch.setattr(autotune, "measure", no_measurement)
    again = autotune.choose(recipe, seconds=LONG)
    assert again.settings == choice.settings and again.reason == "remembered"


@pytest.mark.parametrize(
    "settings",
    [
        "optimizer.name=sgd", "data.batch_size=8", "train.precision=mixed_bfloat16",
        "train.accumulate=2", "train.sam={}",
    ],
)  # fmt: skip
def test_what_changes_a_step_is_measured_anew(small, recipe, settings):
    other = load_recipe(small, (settings,))
    assert autotune.cache_file(other, Runtime()) != autotune.cache_file(recipe, Runtime())


def test_what_does_not_change_a_step_is_not(small, recipe):
    other = load_recipe(small, ("seed=9", "train.epochs=99", "data.validation=8"))
    assert autotune.cache_file(other, Runtime()) == autotune.cache_file(recipe, Runtime())


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"onednn": "yes", "xla": false}', '{"a": 1}'])
def test_a_damaged_memory_is_ignored_with_a_word(recipe, monkeypatch, content):
    path = autotune.cache_file(recipe, Runtime())
    path.parent.mkdir(parents=True)
    path.write_text(content)
    best = Settings(onednn=False)
    monkeypatch.setattr(autotune, "measure", lambda *_: ({best: 1.0}, []))
    choice = autotune.choose(recipe, seconds=LONG)
    assert choice.settings == best and str(path) in choice.notes[0]
    assert json.loads(path.read_text()) == asdict(best)


def test_a_probe_that_breaks_leaves_the_default_and_says_so(recipe, monkeypatch):
    def broken(*_):
        raise WorkerError("no response to 'round' in 60 s")

    monkeypatch.setattr(autotune, "measure", broken)
    choice = autotune.choose(recipe, seconds=LONG)
    assert choice.settings == Settings() and choice.reason == "the probe failed"
    assert choice.notes == ("no response to 'round' in 60 s",)
    assert not autotune.cache_file(recipe, Runtime()).exists()


def test_candidates_that_hang_or_crash_are_left_with_a_word(recipe, monkeypatch):
    monkeypatch.setattr(autotune, "TIMEOUT_S", 0.1)
    measured, notes = autotune.measure(recipe, [Settings(onednn=True), Settings(onednn=False)])
    assert measured == {}
    assert [note.partition(" failed")[0] for note in notes] == [
        "runtime onednn",
        "runtime neither",
    ]


@pytest.mark.parametrize(
    ("settings", "tune", "reason"),
    [
        ((), True, "too short to be tuned"),
        ((), False, "not tuned"),
        (("train.runtime.onednn=false", "train.runtime.xla=false"), True, "recipe"),
    ],
)
def test_nothing_is_measured_without_need(small, monkeypatch, settings, tune, reason):
    monkeypatch.setattr(autotune, "measure", no_measurement)
    choice = autotune.choose(load_recipe(small, settings), tune=tune)
    assert choice.reason == reason
    assert choice.settings.onednn is (False if settings else None)


def test_what_a_recipe_gives_is_no_candidate(small, monkeypatch):
    tried = []
    monkeypatch.setattr(autotune, "measure", lambda _, found: tried.extend(found) or ({}, []))
    autotune.choose(load_recipe(small, ("train.runtime.onednn=true",)), seconds=LONG)
    assert tried == [Settings(True), Settings(True, xla=True)]


@pytest.mark.parametrize("data", ["synthetic, shape: [20, 24, 3]", "cifar10, image_size: 48"])
def test_a_step_is_measured_at_the_size_of_the_recipe(tmp_path, data):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"""
name: x
model: {{name: mobilenet_v2, stem: cifar}}
data: {{name: {data}}}
optimizer: {{name: sgd, lr: 0.1}}
train: {{steps: 1}}
""")
    short = stand_in.shortened(load_recipe(path))
    expected = [20, 24, 3] if "synthetic" in data else [48, 48, 3]
    assert short.data.options()["shape"] == expected


def test_a_training_of_known_length_is_estimated():
    # 80 epochs of 50,000 images of 41 million multiply-accumulates, sixfold, at 100 GFLOP/s.
    recipe = load_recipe(RECIPES / "resnet20_cifar10.yaml")
    assert autotune.estimated_seconds(recipe) == pytest.approx(9732, rel=0.01)
    folder = load_recipe(RECIPES / "resnet18_folder.yaml", ("data.path=.",))
    assert autotune.estimated_seconds(folder) is None


def test_the_settings_of_a_run_are_kept_and_a_resume_insists_on_them(tiny, tmp_path):
    from cnnbench.training.one_stage import resume

    run = train(load_recipe(tiny, ("train.epochs=2",)), run_dir=tmp_path / "r")
    assert run.settings() == Settings(uses_onednn(), xla=False, threads=None)
    environment = json.loads((run.path / "environment.json").read_text())
    environment["runtime"]["onednn"] = not uses_onednn()
    resign(run, environment)
    (run.path / "finished.json").unlink()
    with pytest.raises(UsageError, match=f"{ONEDNN}={int(not uses_onednn())}"):
        resume(open_run(run.path))
    del environment["runtime"]
    resign(run, environment)
    with pytest.raises(RunError, match=r"environment\.json is damaged: runtime"):
        resume(open_run(run.path))


def test_settings_that_are_so_already_are_no_change():
    apply(Settings(onednn=uses_onednn()))


@pytest.mark.slow
def test_the_command_line_sets_them_before_tensorflow_is_imported(tiny, tmp_path):
    settings = ["--set", "train.runtime.onednn=false", "--set", "train.runtime.threads=1"]
    steps = ["--set", "train.epochs=2"]
    done = cnnbench("train", tiny, *settings, *steps, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "run").settings() == Settings(False, xla=False, threads=1)


@pytest.mark.slow
def test_a_step_that_xla_compiles_computes_the_same(small, tmp_path):
    losses = []
    for xla in ("false", "true"):
        settings = (f"train.runtime.xla={xla}", "model.dropout=0.0", "optimizer.lr=1.0e-4")
        recipe = load_recipe(small, settings)
        run = train(recipe, run_dir=tmp_path / xla)
        losses.append([row["train"]["loss"] for row in run.metrics()])
    assert losses[0] != losses[1]  # to the last bit: it was another computation
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
