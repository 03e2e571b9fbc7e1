"""Stages of compression: what each begins with, and that all of them resume exactly."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import TINY
from test_training import InterruptAt, assert_same

from cnnbench import evaluate, load_recipe, open_run, resume, train
from cnnbench.backend.settings import Settings
from cnnbench.cli import cli
from cnnbench.data.open import Access
from cnnbench.errors import InterruptedRun, RecipeError, RunError, UsageError
from cnnbench.runs import checkpoint, find
from cnnbench.runs.find import find_run
from cnnbench.runs.network import restore
from cnnbench.training import stages as stages_module
from cnnbench.training.learner import Learner
from cnnbench.training.loop import Progress

STAGES = (
    "[{name: prune, sparsity: 0.6, every: 2},"
    " {name: prune_filters, macs: 0.7, divisor: 4, epochs: 1},"
    " {name: qat, epochs: 1, lr_scale: 0.1}]"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What all stages begin with: the tiny recipe, trained."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    return train(load_recipe(folder / "tiny.yaml"), run_dir=folder / "run")


def recipe_of(tiny, base, stages=STAGES, *settings):
    common = (f"init={{run: {base.path}}}", f"compress={stages}", "schedule={name: cosine}")
    return load_recipe(tiny, (*common, *settings))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """All stages in a row."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "tiny.yaml").write_text(TINY)
    train(recipe_of(folder / "tiny.yaml", base), run_dir=folder / "run")
    return folder / "run"


def test_each_stage_is_a_run_that_goes_on_from_the_one_before(base, whole):
    pruned, thin, quantized = find.stage_runs(whole)
    assert [run.path.name for run in (pruned, thin, quantized)] == [
        "1-prune", "2-prune_filters", "3-qat",
    ]  # fmt: skip
    assert [len(run.metrics()) for run in (pruned, thin, quantized)] == [3, 1, 1]
    assert pruned.recipe.name == "tiny.1-prune" and quantized.recipe.name == "tiny"
    assert thin.others()["init"].path == pruned.path
    assert pruned.others()["init"].path == base.path
    names = [[r["stage"]["name"] for r in run.architecture()] for run in (base, pruned, quantized)]
    assert names == [[], ["prune"], ["prune", "prune_filters", "qat"]]
    assert quantized.metrics()[0]["lr"] < 0.1 * 0.05
    assert pruned.settings() == thin.settings() == quantized.settings()
    environment = json.loads((thin.path / "environment.json").read_text())
    assert environment["runtime"]["reason"] == "that of the stage before"


def zeros(run) -> float:
    return np.mean(np.concatenate([places.ravel() for places in places_of_zeros(run)]))


def places_of_zeros(run) -> list[np.ndarray]:
    from cnnbench.compression.prune import prunable

    return [np.array(kernel) == 0 for kernel in prunable(restore(run).model)]


def test_what_a_stage_did_stays_done(whole):
    pruned, thin, quantized = find.stage_runs(whole)
    assert zeros(pruned) == pytest.approx(0.6, abs=0.01)
    assert zeros(thin) > 0.3 and zeros(quantized) == pytest.approx(zeros(thin), abs=0.02)
    assert evaluate(thin)["macs"] <= 0.7 * evaluate(pruned)["macs"]
    assert evaluate(thin)["params"] < evaluate(pruned)["params"]


@pytest.mark.slow
def test_what_was_pruned_stays_so_in_a_stage_that_prunes_more(tiny, tmp_path, base):
    stages = (
        "[{name: prune, sparsity: 0.6, scope: global, epochs: 1},"
        " {name: prune, sparsity: 0.7, epochs: 1}]"
    )
    train(recipe_of(tiny, base, stages), run_dir=tmp_path / "run")
    before, after = map(places_of_zeros, find.stage_runs(tmp_path / "run"))
    assert all(np.all(late[early]) for early, late in zip(before, after, strict=True))
    assert all(late.mean() >= 0.7 - 1 / late.size for late in after)


def test_no_weights_are_the_best_before_all_are_pruned(tiny, base):
    recipe = recipe_of(tiny, base, "[{name: prune, sparsity: 0.9, end: 0.6}]")
    learner, progress = Learner(recipe, Access(), Settings(), {"init": base}), Progress()
    judged = []
    for step, top1 in ((5, 0.9), (8, 0.8), (9, 0.5), (12, 0.4), (15, 0.6)):
        judged.append(progress.judge(top1, None, is_settled=learner.is_settled(step)))
    assert learner.total_steps == 15
    assert judged == [True, True, True, False, True]  # 9 steps are 0.6 of 15


@pytest.mark.parametrize(
    # 15 and 20 are the last ones of the first two stages.
    "step",
    [15, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 9, 16, 20, 21))],
)
def test_an_interrupted_chain_resumes_to_the_same_bits(tiny, tmp_path, base, whole, step):
    class Once(InterruptAt):
        """Counts the steps of all stages."""

        def __init__(self):
            super().__init__(step)
            self.before = self.now = 0

        def progressed(self, now, *facts):
            self.before += self.now if now < self.now else 0
            self.now = now
            super().progressed(self.before + now, *facts)

    with pytest.raises(InterruptedRun) as caught:
        train(recipe_of(tiny, base), run_dir=tmp_path / "run", callbacks=Once())
    assert caught.value.allowed.endswith(f"--resume --run-dir {tmp_path / 'run'}")
    assert not find.is_finished(tmp_path / "run")
    begun = find.stage_runs(tmp_path / "run")
    with pytest.raises(RunError, match=r"not all compression stages are finished.*1-prune"):
        open_run(tmp_path / "run")
    # One of its stages stands for them all.
    run = resume(begun[-1] if step == 9 else tmp_path / "run")
    assert run.path == open_run(tmp_path / "run").path == tmp_path / "run" / "3-qat"
    for one, other in zip(find.stage_runs(whole), find.stage_runs(tmp_path / "run"), strict=True):
        assert_same(one, other)
    with pytest.raises(RunError, match="nothing to resume"):
        stages_module.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("[{name: prune, sparsity: 0.5}, {name: distill, teacher: ./nobody}]", "there is no run"),
        ("[{name: prune, sparsity: 0.5}, {name: prune_filters, macs: 0.001}]", "cannot be thinned"),
    ],
)
def test_a_stage_that_cannot_begin_is_refused_before_the_first_is_trained(
    tiny, tmp_path, base, stages, words
):
    with pytest.raises(UsageError, match=words):
        train(recipe_of(tiny, base, stages), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_weight_that_a_later_stage_removes_has_no_group(small, tmp_path, small_run):
    """Batch norms are folded before quantization, and their betas gone."""
    stages = "[{name: prune, sparsity: 0.5}, {name: qat}]"
    groups = "train.groups=[{match: /beta$, lr_scale: 2.0}]"
    with pytest.raises(UsageError, match="matches no trainable weight"):
        train(recipe_of(small, small_run, stages, groups), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stages_that_were_changed_are_not_gone_on_with(tiny, tmp_path, base):
    with pytest.raises(InterruptedRun):
        train(recipe_of(tiny, base), run_dir=tmp_path / "run", callbacks=InterruptAt(2))
    kept = tmp_path / "run" / "stages.yaml"
    kept.write_text(kept.read_text().replace("sparsity: 0.6", "sparsity: 0.7"))
    with pytest.raises(RunError, match=r"the recipe changed since the run started\n.*0\.6"):
        stages_module.resume(tmp_path / "run")


def test_small_images_are_for_the_first_stage(tiny, base):
    sizes = "train.image_sizes=[{until: 1, size: 8}]"
    recipe = recipe_of(tiny, base, "[{name: prune, sparsity: 0.5}, {name: qat}]", sizes)
    first, last = (stage.of_last_stage() for _, stage in find.stage_recipes(tiny.parent, recipe))
    assert [each.size for each in first.train.image_sizes] == [8]
    assert not last.train.image_sizes


def test_the_runs_of_all_stages_are_opened_as_that_of_the_last(whole):
    assert open_run(whole).path == find_run(str(whole)).path == whole / "3-qat"


def test_a_run_that_changed_is_not_begun_from_again(tiny, tmp_path, base):
    import shutil

    copy = tmp_path / "base"
    shutil.copytree(base.path, copy)
    recipe = recipe_of(tiny, open_run(copy), "[{name: prune, sparsity: 0.5}]")
    with pytest.raises(InterruptedRun):
        train(recipe, run_dir=tmp_path / "run", callbacks=InterruptAt(2))
    saved = checkpoint.load(copy / "best")
    arrays = {name: array + 1 for name, array in saved.arrays.items()}
    checkpoint.save(copy / "best", checkpoint.Checkpoint(arrays, saved.state))
    with pytest.raises(RunError, match="the weights changed"):
        stages_module.resume(tmp_path / "run")


@pytest.mark.slow
def test_a_stage_that_was_killed_before_its_first_checkpoint_begins_anew(tiny, tmp_path, base):
    import shutil

    recipe = recipe_of(tiny, base, "[{name: prune, sparsity: 0.5, every: 3}]")
    expected = train(recipe, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        train(recipe, run_dir=tmp_path / "run", callbacks=InterruptAt(2))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    # What a process leaves that is killed inside its first save.
    (tmp_path / "run" / "checkpoints" / ".5.abcdef").mkdir(parents=True)
    assert_same(expected, stages_module.resume(tmp_path / "run"))


def test_a_run_goes_by_the_name_of_its_recipe_too(tiny, tmp_path, base, monkeypatch):
    import shutil

    (tmp_path / "runs").mkdir()
    shutil.copytree(base.path, tmp_path / "runs" / "tiny-20260101-000000")
    monkeypatch.chdir(tmp_path)
    assert find_run("tiny").path.name == "tiny-20260101-000000"
    with pytest.raises(UsageError, match="no finished run of 'other'"):
        find_run("other")
    # Later ones of other names, or of a name that nobody can tell, are not what is looked for.
    for name, text in (("other", "name: other\n"), ("damaged", "name: [")):
        shutil.copytree(base.path, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "recipe.yaml").write_text(text)
    assert find_run("tiny").path.name == "tiny-20260101-000000"


@pytest.mark.parametrize(("settings", "words"), [
    (("compress=[{name: qat}]",), "qat needs a trained network"),
    (("compress=[{name: prune_filters, macs: 0.5}]",), "prune_filters needs a trained network"),
    (("init={run: x}", "compress=[{name: qat}, {name: prune, sparsity: 0.5}]"), "prune after qat"),
    (("init={run: x}", "compress=[{name: qat}]", "train.precision=mixed_float16"),
     "mixed_float16 with qat"),
    (("init={run: x}", "model.weights=y.h5"), "cannot be combined with model.weights"),
    (("compress=[{name: prune, sparsity: 1.0}]",), "less than 1"),
    (("compress=[{name: prune, sparsity: -0.1}]",), "greater than or equal to 0"),
    (("compress=[{name: prune, sparsity: 0.4, pattern: '2:4'}]",), "2:4, which prunes half"),
    (("compress=[{name: prune, sparsity: 0.4, begin: 0.8, end: 0.5}]",),
     "begin: 0.8 is not before end 0.5"),
    (("compress=[{name: prune, sparsity: 0.4, epochs: 1}]",),
     "1 with schedule.warmup_epochs 1; must be more than 1"),
    (("compress=[{name: prun, sparsity: 0.4}]",), "did you mean prune"),
    (("compress=[{name: prune, sparsity: 0.8}, {name: prune, sparsity: 0.5}]",),
     "0.5 after 0.8, but pruned weights stay pruned; must be at least 0.8"),
    (("compress=[{name: prune, sparsity: 0.5, pattern: '2:4'}, {name: prune_filters, macs: 0.5}]",),
     "compress.1: prune_filters after pattern 2:4"),
    (("init={run: x}", "compress=[{name: qat}]", "data.color=hsv"), "hsv with qat"),
    (("compress=[{name: distill, teacher: resnet18.tv_in1k}]", "data.classes=4"),
     "has 1000 classes, but the data has 4"),
    (("compress=[{name: prune, sparsity: 0.4, epochs: 2}]",
      "train.image_sizes=[{until: 2, size: 8}]"), "2 leaves none of 2 epochs"),
    (("compress=[{name: distill, teacher: x, share: 1.5}]",), "less than or equal to 1"),
    (("compress=[{name: distill, teacher: x}]", "train.image_sizes=[{until: 1, size: 8}]"),
     "distill with train.image_sizes"),
])  # fmt: skip
def test_stages_that_make_no_sense_are_refused(tiny, settings, words):
    with pytest.raises(RecipeError, match=words) as refused:
        load_recipe(tiny, settings)
    assert all(problem.where for problem in refused.value.problems)


@pytest.mark.parametrize(("settings", "words"), [
    (("model={name: resnet14}",), "init.run: network of .*: lenet5; must be resnet14"),
    (("data.shape=[32, 32, 3]",), "init.run: images"),
    (("data.classes=4",), "init.run: classes"),
    (("data.color=yuv",), "init.run: data.color of .*: rgb; must be yuv"),
    (("data.mean=[0.1, 0.2, 0.3]",), "init.run: data.mean"),
])  # fmt: skip
def test_a_run_of_another_network_is_not_begun_from(tiny, tmp_path, base, settings, words):
    recipe = recipe_of(tiny, base, "[{name: prune, sparsity: 0.5}]", *settings)
    with pytest.raises(UsageError, match=words):
        train(recipe, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_refused_before_any_work(tiny, base, monkeypatch):
    def rehearsed(*_):
        raise AssertionError("the stages were made ready")

    monkeypatch.setattr(stages_module, "_dry_run", rehearsed)
    with pytest.raises(RunError, match="not empty; --resume continues"):
        train(recipe_of(tiny, base), run_dir=base.path)


def test_the_command_refuses_such_a_folder_before_it_looks_for_settings(tiny, base, monkeypatch):
    def chosen(*_, **__):
        raise AssertionError("settings were tried")

    monkeypatch.setattr("cnnbench.bench.autotune.choose", chosen)
    done = CliRunner().invoke(cli, ["train", str(tiny), "--run-dir", str(base.path)])
    assert isinstance(done.exception, RunError) and "not empty" in str(done.exception)


def test_training_goes_on_from_a_run_without_any_stage(tiny, tmp_path, base):
    recipe = load_recipe(tiny, (f"init={{run: {base.path}}}", "optimizer.lr=1e-9"))
    run = train(recipe, run_dir=tmp_path / "run")
    before, after = restore(base).model.get_weights(), restore(run).model.get_weights()
    trained = [i for i, w in enumerate(restore(base).model.weights) if w.trainable]
    assert all(np.allclose(before[i], after[i], atol=1e-6) for i in trained)


def test_the_recipe_of_a_stage_is_the_whole_one_up_to_it(whole):
    (first, *_, last) = find.stage_runs(whole)
    assert [spec.name for spec in first.recipe.compress] == ["prune"]
    assert [spec.name for spec in last.recipe.compress] == ["prune", "prune_filters", "qat"]
    environment = json.loads((last.path / "environment.json").read_text())
    assert set(environment["runs"]["init"]) == {"path", "weights_sha256"}


def test_a_recipe_that_names_a_folder_from_here_is_the_runs_own(tiny, base, monkeypatch):
    monkeypatch.chdir(base.path.parent)
    stage = "compress=[{name: prune, sparsity: 0.5}]"
    recipe = load_recipe(tiny, ("init={run: ./run}", stage, "schedule={name: cosine}"))
    assert recipe.absolute().init.run == str(base.path)
    with pytest.raises(InterruptedRun):
        train(recipe, run_dir=tiny.parent / "run", callbacks=InterruptAt(2))
    stages_module.must_match(tiny.parent / "run", recipe)
    other = load_recipe(tiny, ("init={run: ./run}", stage, "schedule={name: constant}"))
    with pytest.raises(RunError, match="the recipe changed"):
        stages_module.must_match(tiny.parent / "run", other)


def test_a_long_name_is_cut_for_the_stages_before_the_last(tiny, base, tmp_path):
    recipe = recipe_of(tiny, base, STAGES, "name=" + 64 * "a")
    names = [stage.name for _, stage in find.stage_recipes(tmp_path, recipe)]
    assert names == [56 * "a" + ".1-prune", 48 * "a" + ".2-prune_filters", 64 * "a"]
