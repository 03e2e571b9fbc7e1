"""Training: exact on resume, the same under every strategy, and stopped when it must be."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import RECIPES, cnnbench, resign
from PIL import Image

from cnnbench import load_recipe, open_run, resume, train
from cnnbench.backend.lazy import keras, tf
from cnnbench.backend.settings import Choice, Settings
from cnnbench.data.inspection import Inspection
from cnnbench.data.open import Access
from cnnbench.errors import DataError, DivergedError, InterruptedRun, RunError, UsageError
from cnnbench.recipe.sections import total_steps
from cnnbench.runs import checkpoint
from cnnbench.runs.create import commit, new_run
from cnnbench.runs.network import restore
from cnnbench.training.callbacks import Callbacks
from cnnbench.training.learner import Learner
from cnnbench.training.loop import Progress
from cnnbench.training.one_stage import fit


def final(run) -> dict:
    return dict(checkpoint.newest(run.checkpoints)[0].arrays)


def rows(run) -> list[dict]:
    """The metrics without what a clock wrote."""
    times = ("throughput_images_per_s", "seconds")
    return [{k: v for k, v in row.items() if k not in times} for row in run.metrics()]


def assert_same(one, two):
    a, b = final(one), final(two)
    assert a.keys() == b.keys()
    different = [name for name in a if not np.array_equal(a[name], b[name])]
    assert not different
    assert rows(one) == rows(two)


class InterruptAt(Callbacks):
    def __init__(self, step):
        self.step, self.sent = step, False

    def progressed(self, step, loss, top1, images_per_s):
        # Once, for a second one could come when nobody catches it any more.
        if step >= self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def whole(small_run):
    """What an interrupted run must be the same as."""
    return small_run


def test_a_run_has_its_files(whole):
    assert whole.finished
    names = {path.name for path in whole.path.iterdir()}
    assert names == {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "best", "finished.json",
        "lock", "tensorboard",
    }  # fmt: skip
    assert [row["epoch"] for row in whole.metrics()] == [1, 2, 3]
    assert set(whole.metrics()[0]) == {
        "epoch", "step", "lr", "train", "validation", "throughput_images_per_s", "seconds",
    }  # fmt: skip
    assert whole.data().train_examples == 80 and whole.data().validation_examples == 16


def test_tensorboard_reads_the_events(whole):
    (file,) = (whole.path / "tensorboard").iterdir()
    tags = set()
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        tags |= {value.tag for value in event.summary.value}
    assert tags == {"lr", "train/loss", "train/top1", "validation/loss", "validation/top1"}


def test_training_the_resolved_recipe_again_gives_the_same_bytes(whole, tmp_path):
    again = train(load_recipe(whole.path / "recipe.yaml"), run_dir=tmp_path / "run")
    assert (again.path / "recipe.yaml").read_bytes() == (whole.path / "recipe.yaml").read_bytes()
    assert_same(whole, again)


@pytest.mark.parametrize(
    "step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 5, 10, 14))]
)
def test_an_interrupted_run_resumes_to_the_same_bits(small, tmp_path, whole, step):
    with pytest.raises(InterruptedRun, match="--resume"):
        train(load_recipe(small), run_dir=tmp_path / "run", callbacks=InterruptAt(step))
    run = open_run(tmp_path / "run")
    assert not run.finished
    assert_same(whole, resume(run))


@pytest.mark.slow
def test_interrupted_three_times(small, tmp_path, whole):
    with pytest.raises(InterruptedRun):
        train(load_recipe(small), run_dir=tmp_path / "run", callbacks=InterruptAt(3))
    for step in (6, 11):
        with pytest.raises(InterruptedRun):
            resume(open_run(tmp_path / "run"), callbacks=InterruptAt(step))
    assert_same(whole, resume(open_run(tmp_path / "run")))


def test_steps_a_call_change_nothing(small, tmp_path, whole):
    recipe = load_recipe(small, ("train.steps_per_call=5",))
    run = train(recipe, run_dir=tmp_path / "run")
    a, b = final(whole), final(run)
    assert all(np.allclose(a[name], b[name], atol=1e-5) for name in a)


# In the default set, rows 1 and 2 of tests/test_faults.py kill processes and resume their runs.
@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(small, tmp_path, whole):
    command = [
        sys.executable, "-m", "cnnbench", "train", str(small), "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    saves = tmp_path / "run" / "checkpoints"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (saves.is_dir() and any(path.name.isdigit() for path in saves.iterdir())):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = cnnbench("train", "--resume", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_same(whole, open_run(tmp_path / "run"))


def test_a_signal_from_outside_ends_in_75_and_a_way_on(tiny, tmp_path):
    command = [
        sys.executable, "-m", "cnnbench", "train", str(tiny), "--set", "train.epochs=2000",
        "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "--resume" in stderr and "Traceback" not in stderr


def test_a_finished_or_changed_or_locked_run_is_not_resumed(whole, tiny, tmp_path):
    with pytest.raises(RunError, match="finished"):
        resume(whole)
    with pytest.raises(InterruptedRun):
        train(load_recipe(tiny), run_dir=tmp_path / "run", callbacks=InterruptAt(3))
    run = open_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"(?s)changed.*-seed: 3.*\+seed: 4"):
        run.must_match(load_recipe(tiny, ("seed=4",)))
    with run.locked():
        done = cnnbench("train", "--resume", "--run-dir", run.path)
    assert done.returncode == 6 and "another process (pid" in done.stderr
    environment = json.loads((run.path / "environment.json").read_text())
    environment["data"]["fingerprint"] = "0" * 64
    (run.path / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(RunError, match=r"environment\.json: was changed"):
        resume(run)
    resign(run, environment)
    with pytest.raises(RunError, match="the data set differs from the training data"):
        resume(run)


def test_images_exchanged_for_others_of_their_size_are_not_trained_on(tmp_path):
    for place in ("train/a", "train/b", "test/a"):
        for i in range(8):
            file = tmp_path / "images" / place / f"{i}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (i, 0, 0)).save(file)
    (tmp_path / "recipe.yaml").write_text(
        f"name: f\nmodel: {{name: lenet5}}\ndata: {{name: image_folder, "
        f"path: {tmp_path / 'images'}, batch_size: 4, image_size: 16}}\n"
        "optimizer: {name: sgd, lr: 0.1}\ntrain: {epochs: 1}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    with new_run(tmp_path / "run", recipe) as run:
        learner = Learner(recipe, Access(), Settings())
        commit(run, learner.about_data(), Choice(Settings(), "recipe").about() | {"replicas": 1})
    size = file.stat().st_size
    Image.new("RGB", (16, 16), (i, 0, 1)).save(file)
    assert file.stat().st_size == size
    with pytest.raises(RunError, match="the data set differs from the training data"):
        resume(run)


def test_a_folder_with_something_in_it_is_not_trained_into(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear sir")
    with pytest.raises(RunError, match="not empty"):
        train(load_recipe(tiny), run_dir=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


def test_divergence_stops_with_the_step(tiny, tmp_path):
    recipe = load_recipe(tiny, ("optimizer.lr=1e18", "schedule.warmup_epochs=0"))
    with pytest.raises(DivergedError, match=r"(the loss|a weight) is -?(nan|inf) at step \d"):
        train(recipe, run_dir=tmp_path / "run")


class Notes(Callbacks):
    """A callbacks that keeps what it is told in words."""

    def __init__(self):
        self.texts = []

    def noted(self, text):
        self.texts.append(text)


def test_a_rollback_goes_on_from_the_checkpoint_with_half_the_rate(small, tmp_path):
    # Too high a rate for three halvings, then one that two of them mend.
    settings = ("schedule={name: constant}", "train.on_nan=rollback", "train.checkpoint_every=2")
    hopeless = load_recipe(small, (*settings, "optimizer.lr=1e18"))
    with pytest.raises(DivergedError, match="the checkpoint of step 0 is intact"):
        train(hopeless, run_dir=tmp_path / "hopeless")
    notes = Notes()
    recipe = load_recipe(small, (*settings, "optimizer.lr=0.05"))
    learner = Learner(recipe, Access(), Settings())
    real, calls = learner.train_steps, []

    def poisoned(iterator, rates, *others):
        calls.append(float(rates[0]))
        found = real(iterator, rates, *others)
        # The fourth and the sixth call leave a weight that is none.
        if len(calls) in (4, 6):
            return found[0], found[1], tf.constant([float("nan")] * len(rates))
        return found

    learner.train_steps = poisoned
    with new_run(tmp_path / "run", recipe) as run:
        commit(run, learner.about_data(), Choice(Settings(), "recipe").about())
        fit(learner, run, notes)
    assert calls[:8] == pytest.approx([0.05] * 4 + [0.025] * 2 + [0.0125] * 2)
    told = [text for text in notes.texts if "back to step" in text]
    assert len(told) == 2 and "a weight is nan at step 5: back to step 5" in told[0]
    finished = json.loads((run.path / "finished.json").read_text())
    assert [each["reason"] for each in finished["rollbacks"]] == [
        text.partition(":")[0] for text in told
    ]
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["rollbacks"] == 2 and rows[-1]["lr"] == pytest.approx(0.0125)


def test_averages_are_those_of_the_formula_and_what_is_kept(small, tmp_path):
    recipe = load_recipe(
        small, ("train.ema=0.5", "train.steps_per_call=1", "train.epochs=2", "data.validation=0")
    )
    learner = Learner(recipe, Access(), Settings())
    learner.initialize()
    real, seen = learner.train_steps, []

    def look():
        seen.append([np.array(weight) for weight in learner.state.model.get_weights()])

    def watched(*arguments):
        found = real(*arguments)
        look()
        return found

    look()

    learner.train_steps = watched
    with new_run(tmp_path / "run", recipe) as run:
        commit(run, learner.about_data(), Choice(Settings(), "recipe").about())
        fit(learner, run, Callbacks())
    expected = seen[0]
    for step, weights in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, weights, strict=True)]
    floats = [i for i, w in enumerate(seen[0]) if w.dtype.kind == "f"]
    best = list(checkpoint.load(run.best).arrays.values())
    last = restore(run, weights="last").model.get_weights()
    found = learner.state.averaged.get_weights()
    assert len(floats) > 30
    for i in floats:
        np.testing.assert_allclose(found[i], expected[i], rtol=1e-4, atol=1e-6)
        assert any(np.array_equal(found[i], array) for array in best)
        assert np.array_equal(found[i], last[i])


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        (
            (
                "train.ema=0.9",
                "train.lookahead={every: 3}",
                "train.groups=[{match: beta, lr_scale: 9.0}]",
            ),
            {"average", "slow"},
        ),
        pytest.param(
            ("train.image_sizes=[{until: 2, size: 8}]",), {"model"}, marks=pytest.mark.slow
        ),
        pytest.param(
            ("train.precision=mixed_float16", "train.sam={}", "schedule={name: plateau}"),
            {"optimizer"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_goes_along_is_resumed_exactly(small, tmp_path, settings, kinds):
    recipe = load_recipe(small, settings)
    whole = train(recipe, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        train(recipe, run_dir=tmp_path / "parts", callbacks=InterruptAt(7))
    assert_same(whole, resume(open_run(tmp_path / "parts")))
    assert kinds <= {name.partition("/")[0] for name in final(whole)}


def test_other_code_is_resumed_by_force_alone(tiny, tmp_path):
    with pytest.raises(InterruptedRun):
        train(load_recipe(tiny), run_dir=tmp_path / "run", callbacks=InterruptAt(3))
    run = open_run(tmp_path / "run")
    kept = json.loads((run.path / "environment.json").read_text())
    kept["versions"]["keras"] = "3.0.0"
    resign(run, kept)
    with pytest.raises(RunError, match=r"(?s)keras was 3.0.0, is .*--force") as caught:
        resume(run)
    assert "tensorflow" not in str(caught.value)
    kept["runtime"]["replicas"] = 4
    resign(run, kept)
    with pytest.raises(RunError, match="replicas was 4, is 1"):
        resume(run, force=True)
    kept["runtime"]["replicas"] = 1
    resign(run, kept)
    assert resume(run, force=True).finished


@pytest.mark.parametrize("validation", [0, 16])
def test_weights_that_are_not_finite_are_never_kept(tiny, tmp_path, validation):
    settings = (
        "optimizer.lr=1e38", "regularization.l2=100.0", "schedule.name=constant",
        "schedule.warmup_epochs=0", "train.epochs=null", "train.steps=1",
        f"data.validation={validation}",
    )  # fmt: skip
    recipe = load_recipe(tiny, tuple(s for s in settings if s != "schedule.name=constant"))
    with pytest.raises(DivergedError, match=r"a weight is (nan|-?inf) at step 0"):
        train(recipe, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    assert not (tmp_path / "run" / "finished.json").exists()


def test_min_delta_is_measured_from_the_last_improvement(small, tmp_path):
    settings = ("train.early_stopping.min_delta=0.01", "train.early_stopping.patience=3")
    early = load_recipe(small, settings).train.early_stopping
    progress, counts = Progress(), []
    for epoch in range(8):
        progress.judge(0.5 + 0.008 * epoch, early)
        counts.append(progress.epochs_without)
    assert counts == [0, 1, 0, 1, 0, 1, 0, 1]
    assert progress.best_score == pytest.approx(0.5 + 0.008 * 7)


def test_a_recipe_that_was_edited_is_refused(whole, tmp_path):
    import shutil

    shutil.copytree(whole.path, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(RunError, match="the recipe was changed"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("harm", ["{}", "[1]", "nothing", '{"data": {"classes": 3}}'])
def test_a_damaged_environment_is_refused(whole, tmp_path, harm):
    import shutil

    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text(harm)
    with pytest.raises(RunError, match=r"environment\.json"):
        open_run(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_take_two_directories(tiny, tmp_path):
    def start(*options):
        command = [sys.executable, "-m", "cnnbench", "train", str(tiny), *options]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    both = [start("--set", "seed=1"), start("--set", "seed=2")]
    runs = [process.communicate()[0].splitlines()[-1] for process in both]
    assert runs[0] != runs[1]
    for run, seed in zip(runs, (1, 2), strict=True):
        assert load_recipe(tmp_path / run / "recipe.yaml").seed == seed

    same = [start("--run-dir", "same"), start("--run-dir", "same")]
    codes = sorted(process.wait() for process in same)
    for process in same:
        process.stdout.close(), process.stderr.close()
    assert codes == [0, 6]


def test_a_run_that_cannot_begin_leaves_nothing(tiny, tmp_path):
    settings = ("train.early_stopping.patience=1", "data.name=digits", "data.validation=0")
    with pytest.raises(Exception, match="validation"):
        train(load_recipe(tiny, settings), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_steps_are_traced_once(tiny, tmp_path):
    recipe = load_recipe(tiny, ("train.steps_per_call=3",))
    with new_run(tmp_path / "run", recipe) as run:
        learner = Learner(recipe, Access(), Settings())
        commit(run, learner.about_data(), {})
        fit(learner, run, Callbacks())
    assert learner.train_steps.experimental_get_tracing_count() == 1


def test_early_stopping(tiny, tmp_path):
    settings = ("train.epochs=50", "train.early_stopping.patience=2", "optimizer.lr=1e-9")
    run = train(load_recipe(tiny, settings), run_dir=tmp_path / "run")
    scores = [row["validation"]["top1"] for row in run.metrics()]
    best = int(np.argmax(scores))
    assert len(scores) == best + 3 < 50
    assert checkpoint.load(run.best).state["epoch"] == best + 1


@pytest.mark.parametrize(("found_at", "saved_at"), [(3, 4), (15, None)])
def test_a_bad_image_found_in_the_background_ends_the_training_saved(
    tiny, tmp_path, monkeypatch, found_at, saved_at
):
    done = [0]
    callbacks = Callbacks()
    callbacks.progressed = lambda step, *_: done.append(step)
    error = DataError("bad.png: cannot decode")
    monkeypatch.setattr(
        Inspection, "failure", lambda self, _=None: error if done[-1] >= found_at else None
    )
    folder = tmp_path / "run"
    if saved_at is None:  # nothing is left to train
        assert train(load_recipe(tiny), run_dir=folder, callbacks=callbacks).finished
        return
    with pytest.raises(DataError, match=r"bad\.png"):
        train(load_recipe(tiny), run_dir=folder, callbacks=callbacks)
    assert checkpoint.newest(folder / "checkpoints")[0].state["step"] == saved_at
    done.append(0)
    assert resume(folder).finished


@pytest.mark.slow
def test_plateau_and_every_precision_train(small, tmp_path):
    for precision in ("mixed_float16", "mixed_bfloat16"):
        settings = (
            f"train.precision={precision}", "train.epochs=2", "schedule.name=plateau",
            "schedule.patience=1",
        )  # fmt: skip
        run = train(load_recipe(small, settings), run_dir=tmp_path / precision)
        assert all(np.isfinite(row["train"]["loss"]) for row in run.metrics())
        assert keras.config.dtype_policy().name == "float32"  # for whatever is built next
        names = final(run)
        assert any("dynamic_scale" in name for name in names) == (precision == "mixed_float16")


TWO_REPLICAS = """
import sys
from cnnbench.backend.lazy import load, tf
load()
two = sys.argv[3] == "mirrored"
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * (2 if two else 1)
)
from cnnbench import load_recipe, train
settings = ("train.strategy=" + sys.argv[3], "model.dropout=0.0")
settings += ("train.precision=" + sys.argv[4], "train.epochs=null", "train.steps=2")
settings += ("schedule.warmup_epochs=0", "optimizer.lr=0.01", "train.ema=0.9")
train(load_recipe(sys.argv[1], settings), run_dir=__import__("pathlib").Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_two_replicas_equal_one_device(small, tmp_path, precision):
    runs = []
    for strategy in ("one_device", "mirrored"):
        place = tmp_path / strategy
        command = [sys.executable, "-c", TWO_REPLICAS, small, place, strategy, precision]
        subprocess.run(command, check=True)
        runs.append(open_run(place))
    a, b = map(final, runs)
    close = 1e-4 if precision == "float32" else 2e-2
    # Gradient sums and a loss scale may differ in their last bits.
    assert all(np.allclose(a[name], b[name], atol=close) for name in a if "scale" not in name)
    for one, two in zip(rows(runs[0]), rows(runs[1]), strict=True):
        assert one["train"]["loss"] == pytest.approx(two["train"]["loss"], abs=10 * close)


def test_a_replica_must_have_whole_parts(small):
    recipe = load_recipe(small, ("train.accumulate=16",))
    data = recipe.data.model_copy(update={"batch_size": 24})
    with pytest.raises(UsageError, match=r"multiple of 1 replicas times train\.accumulate"):
        Learner(recipe.model_copy(update={"data": data}), Access(), Settings())


def test_durations_are_epochs_steps_or_examples(small):
    def steps(**options):
        settings = ["train.epochs=null", *(f"train.{k}={v}" for k, v in options.items())]
        return total_steps(load_recipe(small, tuple(settings)).train, 100, 16)

    assert steps(epochs=2.5) == 250
    assert steps(steps=7) == 7
    assert steps(examples=1600) == 100


@pytest.mark.slow
def test_resnet20_learns_cifar10(cifar10, tmp_path):
    from cnnbench import evaluate
    from cnnbench.data.open import Access

    recipe = load_recipe(RECIPES / "resnet20_cifar10.yaml", ("train.epochs=3",))
    run = train(recipe, run_dir=tmp_path / "run", access=Access(cifar10))
    assert evaluate(run)["top1"] >= 0.60


KEPT_MEMORY = """
import resource, sys
from pathlib import Path
from cnnbench import load_recipe
from cnnbench.data.open import Access
from cnnbench.backend.settings import Settings
from cnnbench.system.memory import keep_freed_memory
from cnnbench.training.learner import Learner

keep_freed_memory()
learner = Learner(load_recipe(Path(sys.argv[1])), Access(), Settings())
iterator = iter(learner.stream.dataset(0))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        next(iterator)
        b"x" * 80_000_000  # about 20,000 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc's malloc alone")
def test_freed_memory_is_kept_for_the_next_step(tiny):
    command = [sys.executable, "-c", KEPT_MEMORY, str(tiny)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 5000
