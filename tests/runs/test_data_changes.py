"""Single files that were removed or replaced since a run started, accepted by name."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import here
from PIL import Image
from test_moved import make_images

from cnnbench import Access, load_recipe, open_run, train
from cnnbench.data.inspection import Inspection
from cnnbench.data.open import open_dataset
from cnnbench.data.splits import evaluation_examples, training_splits
from cnnbench.errors import DataError, RunError, UsageError
from cnnbench.registry.kinds import DATASETS
from cnnbench.runs import data_changes, file_lists
from cnnbench.system import files


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A folder with images and a run that was trained halfway on them. Only to be copied."""
    root = tmp_path_factory.mktemp("half")
    make_images(root / "images", 6)
    (root / "f.yaml").write_text(
        "name: f\nmodel: {name: lenet5}\noptimizer: {name: sgd, lr: 0.01}\n"
        f"data: {{name: image_folder, path: {root}/images, batch_size: 4, image_size: 32, "
        "validation: 4}\ntrain: {epochs: 2, checkpoint_every: 1, steps_per_call: 1}\n"
    )
    run = train(load_recipe(root / "f.yaml"), run_dir=root / "run")
    (run.path / "finished.json").unlink()
    shutil.rmtree(run.path / "checkpoints/4")
    return root


@pytest.fixture
def project(half, tmp_path):
    shutil.copytree(half, tmp_path / "new")
    return tmp_path / "new"


def resume(project, *names):
    options = [word for name in names for word in ("--accept-data-change", name)]
    data = ("--data-path", project / "images")
    return here("train", "--resume", "--run-dir", project / "run", *data, *options)


def names(examples):
    return [examples.source.name(int(index)) for index in examples.indices]


@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_the_order_and_the_splits_stay_without_a_removed_file(tmp_path, on_bad_image):
    make_images(tmp_path, 20)
    spec = DATASETS.spec(
        "image_folder", path=str(tmp_path), image_size=32, batch_size=4, validation=10,
        on_bad_image=on_bad_image,
    )  # fmt: skip
    before = training_splits(open_dataset(spec, Access()), spec)
    train, validation = names(before.train), names(before.validation)
    gone = [train[3], validation[2], str(tmp_path / "test/cat/5.png")]
    for each in gone:
        (tmp_path / each).unlink()
    access = Access(removed=tuple(each.removeprefix(f"{tmp_path}/") for each in gone))
    dataset = open_dataset(spec, access)
    after = training_splits(dataset, spec)
    assert names(after.validation) == [each for each in validation if each not in gone]
    if on_bad_image == "skip":
        assert names(after.train) == train[:3] + train[4:]
    else:
        assert names(after.train)[:3] + names(after.train)[4:] == train[:3] + train[4:]
        assert names(after.train)[3] in set(train) - set(gone)
        after.train.source.read(int(after.train.indices[3]))
    assert len(evaluation_examples(dataset, spec, "test")[0]) == 39


def test_a_removed_file_is_accepted_by_name(project):
    (project / "images/train/dog/3.png").unlink()
    done = resume(project)
    assert done.returncode == 6
    assert "differs from the training data: removed: train/dog/3.png; cnnbench" in done.stderr
    assert f"--resume --run-dir {project}/run --accept-data-change FILE" in done.stderr
    done = resume(project, "train/dog/4.png")
    assert done.returncode == 6 and "changed too: train/dog/3.png" in done.stderr
    done = resume(project, "train/dog/33.png")
    assert done.returncode == 2 and "is no file of the data set when the run" in done.stderr
    done = resume(project, project / "images/train/dog/3.png")
    assert done.returncode == 0, done.stderr
    assert "accepted: train/dog/3.png was removed since the run started" in done.stderr
    run = open_run(project / "run")
    (change,) = run.environment["accepted_data_changes"]
    assert change["file"] == "train/dog/3.png" and change["change"] == "removed"
    assert len(run.metrics()) == 2 and run.data().train_examples == 8
    assert here("eval", run.path, "--data-path", project / "images").returncode == 0
    (project / "images/test/dog/3.png").unlink()  # after the training, too
    done = here("eval", run.path, "--data-path", project / "images")
    assert done.returncode == 6 and "removed: test/dog/3.png; cnnbench train --" in done.stderr
    done = resume(project, "test/dog/3.png")
    assert done.returncode == 0 and "accepted: test/dog/3.png was removed" in done.stderr
    done = here("eval", run.path, "--data-path", project / "images", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["examples"] == 11


def test_a_replaced_file_is_accepted_by_name_and_no_other(project):
    for name in ("3", "4"):
        Image.new("RGB", (32, 32), "white").save(project / f"images/train/cat/{name}.png")
    done = resume(project, "train/cat/3.png")
    assert done.returncode == 6 and "changed too: train/cat/4.png" in done.stderr
    before = files.sha256(project / "run/environment.json")
    (project / "images/train/cat/9.png").write_bytes(b"new")
    done = resume(project, "train/cat/3.png", "train/cat/4.png")
    assert done.returncode == 6 and "changed too: train/cat/9.png" in done.stderr
    assert files.sha256(project / "run/environment.json") == before
    (project / "images/train/cat/9.png").unlink()
    done = resume(project, "train/cat/3.png", "train/cat/4.png")
    assert done.returncode == 0 and done.stderr.count("was replaced since") == 2


def test_a_removed_test_image_is_accepted_before_the_training_ends(project):
    (project / "images/test/dog/3.png").unlink()
    done = resume(project, "test/dog/3.png")
    assert done.returncode == 0, done.stderr


def accept(project, *names):
    access = Access(data_path=project / "images")
    return data_changes.accept(open_run(project / "run"), access, names)


def test_a_file_that_did_not_change_is_refused(project):
    (project / "images/train/dog/3.png").unlink()
    with pytest.raises(UsageError, match=r"^train/dog/4.png: did not change"):
        accept(project, "train/dog/3.png", "train/dog/4.png")
    assert len(accept(project, "train/dog/3.png")[1]) == 1
    assert accept(project, "train/dog/3.png")[1] == []  # as in a stage that has accepted it
    with pytest.raises(UsageError, match="did not change"):
        accept(project, "train/dog/4.png")


@pytest.mark.parametrize("fails_at", ["write", "write_json", "remove_others"])
def test_a_kill_while_a_change_is_recorded_leaves_a_whole_run(project, monkeypatch, fails_at):
    (project / "images/train/dog/3.png").unlink()
    room = files if fails_at == "write_json" else file_lists
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, fails_at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        accept(project, "train/dog/3.png")
    accept(project, "train/dog/3.png")
    (project / "images/train/dog/4.png").unlink()
    run, lines = accept(project, "train/dog/4.png")
    assert len(lines) == 1 and run.data().removed_files == ["train/dog/3.png", "train/dog/4.png"]
    assert len(list(run.path.glob("data-files*"))) == 1


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_split_of_which_nothing_is_left_is_refused(project, part):
    recipe = open_run(project / "run").recipe
    dataset = open_dataset(recipe.data, Access(data_path=project / "images"))
    gone = names(evaluation_examples(dataset, recipe.data, part)[0])
    for each in gone:
        Path(each).unlink()
    before = files.sha256(project / "run/environment.json")
    with pytest.raises(DataError, match=f"all {len(gone)} images of a split were removed"):
        accept(project, *gone)
    assert files.sha256(project / "run/environment.json") == before


def test_a_damaged_list_of_files_is_named(project):
    (project / "run/data-files.txt.gz").write_bytes(b"x")
    with pytest.raises(RunError, match=r"data-files\.txt\.gz: cannot read"):
        accept(project, "train/dog/3.png")


def test_names_are_compared_in_one_form_of_unicode(tmp_path):
    before = {"train/caf\u00e9/1.png": "1:00000000"}
    root = tmp_path / "a\u0301"
    for given in ("train/cafe\u0301/1.png", f"{tmp_path}/\u00e1/train/cafe\u0301/1.png"):
        assert data_changes._name(given, root, before) == "train/caf\u00e9/1.png"


@pytest.mark.parametrize("name", ["a:b.png", "a\nb.png", "a:1:abcdef01.png", "é", "a\n:3:4"])
def test_the_list_of_files_takes_any_name(name):
    identity = f"{name}:12:0a1b2c3d\nx/y.png:removed\nz.png:3:00000000"
    assert file_lists.by_name(identity) == {
        name: "12:0a1b2c3d", "x/y.png": "removed", "z.png": "3:00000000",
    }  # fmt: skip


@pytest.mark.slow  # trains four times: three stages' worth and a teacher
def test_the_stages_of_a_moved_project_go_on_with_the_data_they_began_with(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    make_images(old / "images", 6)
    text = (
        "name: NAME\nmodel: {name: lenet5}\noptimizer: {name: sgd, lr: 0.01}\n"
        f"data: {{name: image_folder, path: {old}/images, batch_size: 4, image_size: 32}}\n"
        "train: {epochs: 1}\n"
    )
    prune = "{name: prune, sparsity: 0.5}"
    stages = f"compress: [{prune}, {{name: distill, teacher: {old}/runs/teacher}}]\n"
    (old / "teacher.yaml").write_text(text.replace("NAME", "teacher"))
    (old / "two.yaml").write_text(text.replace("NAME", "two") + stages)
    train(load_recipe(old / "teacher.yaml"), run_dir=old / "runs/teacher")
    inspected, going_on = [], Inspection.going_on
    monkeypatch.setattr(
        Inspection, "going_on", lambda self: inspected.append(self._count) or going_on(self)
    )
    train(load_recipe(old / "two.yaml"), run_dir=old / "runs/two")
    assert inspected == [24, 0]  # in the first stage alone
    shutil.rmtree(old / "runs/two/2-distill")
    old.rename(new)
    (new / "images/train/cat/2.png").unlink()
    words = ("train", "--resume", "--run-dir", new / "runs/two")
    done = here(*words)
    assert done.returncode == 6 and "removed: train/cat/2.png" in done.stderr
    done = here(*words, "--accept-data-change", "train/cat/2.png")
    assert done.returncode == 0, done.stderr
    assert here("eval", new / "runs/two").returncode == 0
    assert str(old) not in (new / "runs/two/2-distill/recipe.yaml").read_text()
