"""Single files that were removed or replaced since a run started, accepted by name."""

import json
import shutil

import pytest
from conftest import here
from PIL import Image
from test_moved import make_images

from cnnbench import Access, load_recipe, open_run, train
from cnnbench.data.open import open_dataset
from cnnbench.data.splits import evaluation_examples, training_splits
from cnnbench.registry.kinds import DATASETS
from cnnbench.runs import data_changes
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
    assert "the data set changed: removed: train/dog/3.png; --accept-data" in done.stderr
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
    assert here("eval", run.path, "--data-path", project / "images").returncode == 6
    assert resume(project, "test/dog/3.png").returncode == 0
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


@pytest.mark.parametrize("name", ["a:b.png", "a\nb.png", "a:1:abcdef01.png", "é", "a\n:3:4"])
def test_the_list_of_files_takes_any_name(name):
    identity = f"{name}:12:0a1b2c3d\nx/y.png:removed\nz.png:3:00000000"
    assert data_changes._by_name(identity) == {
        name: "12:0a1b2c3d", "x/y.png": "removed", "z.png": "3:00000000",
    }  # fmt: skip


@pytest.mark.slow  # trains four times: three stages' worth and a teacher
def test_the_stages_of_a_moved_project_go_on_with_the_data_they_began_with(tmp_path):
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
    train(load_recipe(old / "two.yaml"), run_dir=old / "runs/two")
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
