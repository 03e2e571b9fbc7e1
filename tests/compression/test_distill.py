"""Distillation: the loss of the papers, from a teacher that sees what the student sees."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from cnnbench import load_recipe, train
from cnnbench.backend.lazy import keras, tf
from cnnbench.backend.settings import Settings
from cnnbench.compression.distill import Lesson
from cnnbench.compression.prune import sparsity_of
from cnnbench.compression.stages import Distillation
from cnnbench.data.open import Access, open_dataset
from cnnbench.errors import RecipeError, UsageError
from cnnbench.models.build import build_model, feature_maps
from cnnbench.models.pretrained import load, presets
from cnnbench.models.pretrained.preprocessing import Preprocessing
from cnnbench.runs import checkpoint
from cnnbench.runs.network import restore
from cnnbench.tasks.task import task_named
from cnnbench.training import compression
from cnnbench.training import start as start_module
from cnnbench.training.learner import Learner

soft_losses = task_named("classification").distillation_losses


def soft(logits, temperature):
    shares = np.exp(logits.astype(np.float64) / temperature)
    return shares / shares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_loss_is_the_divergence_at_a_temperature(temperature, random):
    teacher, student = random.normal(0, 3, (2, 5, 7)).astype(np.float32)
    p, q = soft(teacher, temperature), soft(student, temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1)
    assert np.allclose(soft_losses(teacher, student, temperature), expected, rtol=1e-4)
    assert np.allclose(soft_losses(teacher, teacher, temperature), 0, atol=1e-5)


def test_gradients_at_a_high_temperature_are_those_of_the_squared_difference(random):
    # Hinton et al. 2015, equation 4: (z - v) / classes, for logits of mean zero.
    teacher, student = random.normal(0, 1, (2, 4, 6)).astype(np.float32)
    teacher, student = (x - x.mean(axis=1, keepdims=True) for x in (teacher, student))
    z = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.reduce_sum(soft_losses(teacher, z, 200.0))
    assert np.allclose(tape.gradient(loss, z), (student - teacher) / 6, atol=2e-3)


def lesson(teacher, **options):
    stage = {"teacher": "", "temperature": 3.0, "share": 0.7, "hints": 0.0} | options
    return Lesson(
        teacher, lambda images: images / 255, Distillation(**stage), task_named("classification")
    )


def test_a_lesson_mixes_the_teachers_answers_labels_and_hints(random):
    teacher = build_model("resnet14", (16, 16, 3), 5)
    student = build_model("resnet8", (16, 16, 3), 5)
    taught = lesson(teacher, hints=2.0)
    model = taught.with_hints(student)
    assert taught.guesses == len(model.outputs) - 1 == len(feature_maps(student))
    images = random.uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    labelled = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    outputs = [np.array(x) for x in model(images / 255, training=False)]
    found = taught.losses(images, [tf.constant(x) for x in outputs], labelled)
    logits = np.array(teacher(images / 255, training=False))
    expected = 0.3 * labelled + 0.7 * np.array(soft_losses(logits, outputs[0], 3.0))
    maps = keras.Model(teacher.input, list(feature_maps(teacher).values()))(images / 255)
    for theirs, own in zip(maps, outputs[1:], strict=True):
        expected += 2.0 * ((np.array(theirs) - own) ** 2).mean(axis=(1, 2, 3))
    assert np.allclose(found, expected, rtol=1e-4)


def test_networks_without_a_common_size_have_no_hints():
    taught = lesson(build_model("resnet8", (16, 16, 3), 5), hints=1.0)
    images = keras.Input((16, 16, 3))
    logits = keras.layers.Dense(5)(keras.layers.Flatten()(images))
    with pytest.raises(UsageError, match="no feature maps of the same size"):
        taught.with_hints(keras.Model(images, logits))


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory):
    from conftest import SMALL

    folder = tmp_path_factory.mktemp("teacher")
    (folder / "small.yaml").write_text(SMALL)
    recipe = load_recipe(folder / "small.yaml", ("model={name: resnet14}", "train.epochs=2"))
    return train(recipe, run_dir=folder / "run")


def distilled(small, teacher, *settings, **options):
    named = "".join(f", {key}: {value}" for key, value in options.items())
    stage = f"compress=[{{name: distill, teacher: {teacher}{named}}}]"
    return load_recipe(small, (stage, "schedule={name: cosine}", *settings))


def test_the_teacher_is_given_the_very_images_of_the_student(small, tmp_path, teacher_run):
    # Its images are normalised in another way than the teacher's.
    settings = ("train.epochs=1", "model.dropout=0.0", "data.mean=[0.1, 0.2, 0.3]")
    recipe = distilled(small, teacher_run.path, *settings, share=1.0, temperature=1.0)
    learner = Learner(recipe, Access(), Settings(), {"teacher": teacher_run})
    learner.initialize()
    pixels, _ = next(iter(learner.stream.dataset(0)))
    student = learner.state.model(learner.preprocess(pixels), training=True)
    teacher = restore(teacher_run)(pixels)["logits"]
    expected = float(tf.reduce_sum(soft_losses(teacher, student, 1.0)))
    learner = Learner(recipe, Access(), Settings(), {"teacher": teacher_run})
    iterator = iter(learner.stream.dataset(0))
    nothing = tf.zeros(2)
    none = tf.zeros(len(nothing), tf.bool)
    losses, *_ = learner.train_steps(iterator, nothing, nothing, none, tf.constant(1))
    assert float(losses[0]) == pytest.approx(expected, rel=1e-4)


def test_hints_are_trained_and_not_kept(small, tmp_path, teacher_run):
    run = train(distilled(small, teacher_run.path, hints=0.1), run_dir=tmp_path / "run")
    saved = checkpoint.newest(run.checkpoints)[0].arrays
    kernels = [name for name in saved if "/hint_" in name and name.endswith("kernel")]
    assert any(name.startswith("model/") for name in kernels)
    kept = checkpoint.load(run.best).arrays
    assert kept and not any("hint_" in name for name in kept)
    assert len(restore(run).model.outputs) == 1


@pytest.mark.slow
def test_averages_are_pruned_after_a_lesson_with_hints(small, tmp_path, teacher_run):
    stages = (
        f"compress=[{{name: distill, teacher: {teacher_run.path}, hints: 0.1}},"
        " {name: prune, sparsity: 0.5, every: 2}]"
    )
    settings = (stages, "train.ema=0.9", "train.epochs=1", "schedule={name: cosine}")
    run = train(load_recipe(small, settings), run_dir=tmp_path / "run")
    assert sparsity_of(restore(run).model)[0] == pytest.approx(0.5, abs=0.01)


def test_a_teacher_teaches_on_though_its_name_means_a_newer_run(
    tiny, tmp_path, teacher_run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for time in ("20260101-000000", "20260102-000000"):
        copy = tmp_path / "runs" / f"small-{time}"
        shutil.copytree(teacher_run.path, copy, copy_function=shutil.copyfile)
        if time.startswith("20260101"):
            first = train(distilled(tiny, "small", "train.epochs=1"), run_dir=tmp_path / "run")
    stages = "compress=[{name: distill, teacher: small}, {name: prune, sparsity: 0.5}]"
    recipe = load_recipe(tiny, (stages,))
    names = [
        start_module.referenced_runs(recipe, start)["teacher"].path.name for start in (first, None)
    ]
    assert names == ["small-20260101-000000", "small-20260102-000000"]


def test_a_preset_sees_images_as_it_was_trained_with_them(small, tmp_path, monkeypatch, random):
    net = build_model("mobilenet_v1_025", (32, 32, 3), 10)
    arrays = {weight.path: weight.numpy() for weight in net.weights}
    monkeypatch.setattr(
        load, "start_from", lambda model, *_, **__: load.load(model, arrays, where="x")
    )
    means, deviations = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    prepared = Preprocessing(means, deviations)
    preset = presets.Preset("mobilenet_v1_025", "", "", "", "", prepared, classes=10)
    monkeypatch.setitem(presets.PRESETS, "mine", preset)
    recipe = distilled(small, "mine", "data.shape=[32, 32, 3]", "data.color=hsv", share=1.0)
    data = open_dataset(recipe.data, Access())
    taught = compression.lesson(recipe, data, (32, 32, 3), None)
    pixels = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    logits = net((pixels / 255 - means) / deviations, training=False)
    student = np.zeros((2, 10), np.float32)
    found = taught.losses(pixels, [tf.constant(student)], np.zeros(2, np.float32))
    assert np.allclose(found, soft_losses(logits, student, 4.0), rtol=1e-3)
    monkeypatch.setitem(presets.PRESETS, "mine", replace(preset, classes=1000))
    with pytest.raises(UsageError, match="mine was trained on 1000 other classes"):
        compression.lesson(recipe, data, (32, 32, 3), None)


@pytest.mark.parametrize(("setting", "words"), [
    ("data.classes=4", "the teacher was trained on other classes"),
    ("data.shape=[32, 32, 3]", "the teacher takes images of"),
])  # fmt: skip
def test_a_teacher_of_other_things_is_refused(small, tmp_path, teacher_run, setting, words):
    recipe = distilled(small, teacher_run.path, setting)
    with pytest.raises(UsageError, match=words):
        train(recipe, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_nowhere_is_refused(small, tmp_path):
    with pytest.raises(UsageError, match="there is no run"):
        train(distilled(small, tmp_path / "nowhere"), run_dir=tmp_path / "run")
    with pytest.raises(RecipeError, match="greater than 0"):
        distilled(small, "x", temperature=0)
