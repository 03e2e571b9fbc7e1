"""Images, runs and teachers that lie elsewhere than when a run started, and which run is newest."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import here, resign
from PIL import Image
from safetensors.numpy import save_file

from cnnbench import Access, evaluate, load_recipe, open_run, train
from cnnbench.data.open import open_dataset
from cnnbench.errors import CnnbenchError, RunError, UsageError
from cnnbench.models.pretrained.sources import identification_of
from cnnbench.registry.kinds import DATASETS, model_spec
from cnnbench.runs import checkpoint, network
from cnnbench.runs.create import commit, new_run
from cnnbench.runs.facts import DataFacts
from cnnbench.runs.find import find_run, newest_run
from cnnbench.system import files
from cnnbench.training.stages import must_match

FACTS = DataFacts(
    name="none", fingerprint="", classes=["a", "b"], stored_channels=1, input_shape=[16, 16, 1],
    color="grey", mean=[0.5], std=[0.5],
)  # fmt: skip
RUNTIME = {"onednn": None, "xla": False, "threads": None, "replicas": 1}


def make_images(root, count=4):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (32, 32, 3), np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with images and a run that was trained on them. Only to be copied."""
    root = tmp_path_factory.mktemp("project")
    make_images(root / "images")
    (root / "images/train/dog/bad.png").write_text("broken")
    (root / "f.yaml").write_text(
        f"name: f\nmodel: {{name: lenet5}}\noptimizer: {{name: sgd, lr: 0.01}}\n"
        f"data: {{name: image_folder, path: {root}/images, batch_size: 4, image_size: 32, "
        "on_bad_image: skip}\ntrain: {steps: 2}\n"
    )
    train(load_recipe(root / "f.yaml"), run_dir=root / "runs/f")
    return root


@pytest.fixture
def moved(project, tmp_path):
    """A copy of the project, at a time when its own folder is not there."""
    shutil.copytree(project, tmp_path / "new")
    away = project.with_name("away")
    project.rename(away)
    yield tmp_path / "new"
    away.rename(project)


def fails(error):
    """Returns a function that raises an error, whatever it is called with."""

    def fail(*_arguments, **_options):
        raise error

    return fail


def opened(run, access=None):
    return network.open_data(run, access or Access())


def test_images_that_moved_with_the_run_are_found(moved):
    found = opened(open_run(moved / "runs/f")).split("test").source
    assert found.name(0) == str(moved / "images/test/cat/0.png")


def test_images_elsewhere_are_used_if_they_are_the_same(moved, tmp_path):
    (moved / "images").rename(tmp_path / "photos")
    run = open_run(moved / "runs/f")
    done = here("eval", run.path)
    assert done.returncode == 3 and "--data-path says where it is" in done.stderr
    assert evaluate(run, access=Access(data_path=tmp_path / "photos"))["examples"] == 8
    done = here("eval", run.path, "--json", "--data-path", tmp_path / "photos")
    assert done.returncode == 0 and json.loads(done.stdout)["examples"] == 8
    (tmp_path / "photos/test/cat/0.png").unlink()
    done = here("eval", run.path, "--data-path", tmp_path / "photos")
    assert done.returncode == 6 and "photos differs from the training data" in done.stderr
    assert f"--data-path {tmp_path}/photos --accept-data-change FILE" in done.stderr


def unfinished(project):
    (project / "runs/f/finished.json").unlink()
    return open_run(project / "runs/f")


def test_skipped_images_may_have_moved_too(moved, project):
    run = unfinished(moved)
    assert run.data().skipped_images == ["train/dog/bad.png"]
    facts = run.data().model_dump() | {"skipped_images": [f"{project}/images/train/dog/bad.png"]}
    resign(run, dict(run.environment) | {"data": facts})  # as older versions kept them
    done = here("train", "--resume", "--run-dir", run.path)
    assert done.returncode == 0, done.stderr
    now = DataFacts(**facts | {"skipped_images": ["train/dog/ad.png"]})
    with pytest.raises(RunError, match="the data set changed: skipped_images"):
        open_run(run.path).must_match_data(now)


@pytest.mark.parametrize("path", ["as it was", "images", "~/images"])
def test_a_run_goes_on_with_the_images_of_its_recipe(moved, monkeypatch, path):
    run, recipe = unfinished(moved), moved / "f.yaml"
    monkeypatch.setenv("HOME", str(moved))
    before = run.recipe.data.path
    recipe.write_text(recipe.read_text().replace(before, before if path == "as it was" else path))
    words = ("train", recipe, "--resume", "--run-dir", run.path)
    if path == "~/images":
        Image.new("RGB", (32, 32), "white").save(moved / "images/train/cat/0.png")
        words = (*words, "--accept-data-change", "train/cat/0.png")
    done = here(*words, cwd=moved)
    assert done.returncode == 0, done.stderr
    assert ("train/cat/0.png was replaced" in done.stderr) == (path == "~/images")


def test_access_has_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Access(data_path="~/photos").data_path == tmp_path / "photos"
    assert Access(data_path=Path("photos")).data_path == tmp_path / "photos"


def test_a_path_is_refused_for_data_without_one(tmp_path):
    with pytest.raises(UsageError, match="digits has none"):
        open_dataset(DATASETS.spec("digits"), Access(data_path=tmp_path))


def begun(path, recipe, others=None):
    with new_run(path, recipe) as run:
        commit(run, FACTS, RUNTIME, others=others)
    return run


def weighted(path, recipe, value):
    run = begun(path, recipe)
    checkpoint.save(run.best, checkpoint.Checkpoint({"model/0/x": np.full(3, value)}, {}))
    return run


def test_a_run_that_moved_with_the_one_that_depends_on_it_is_found(tiny, tmp_path):
    recipe = load_recipe(tiny)
    teacher = weighted(tmp_path / "a/teachers/one", recipe, 1.0)
    begun(tmp_path / "a/runs/two", recipe, {"teacher": teacher})
    (tmp_path / "a").rename(tmp_path / "b")
    student = open_run(tmp_path / "b/runs/two")
    assert student.others()["teacher"].path == tmp_path / "b/teachers/one"
    weighted(tmp_path / "a/teachers/one", recipe, 2.0)  # another one in its place
    assert student.others()["teacher"].path == tmp_path / "b/teachers/one"
    (tmp_path / "b/teachers/one").rename(tmp_path / "b/runs/one")
    assert student.others()["teacher"].path == tmp_path / "b/runs/one"
    shutil.rmtree(tmp_path / "b/runs/one")
    with pytest.raises(RunError, match="weights changed"):
        student.others()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(RunError, match=r"depends on the run .*/a/teachers/one, which is gone"):
        student.others()


def test_the_recipe_of_a_moved_project_is_that_of_its_run(moved):
    run, recipe = open_run(moved / "runs/f"), load_recipe(moved / "f.yaml").absolute()
    run.must_match(recipe)
    data = recipe.data.model_copy(update={"path": str(moved / "images")})
    run.must_match(recipe.model_copy(update={"data": data}))
    with pytest.raises(RunError, match="recipe changed"):
        run.must_match(recipe.model_copy(update={"seed": 7}))


def test_the_recipe_of_a_run_whose_weight_file_is_gone_is_that_of_the_run(tiny, tmp_path):
    metadata = {"weights_source": "torchvision:resnet18"}
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "w.safetensors", metadata)
    settings = (f"model={{name: resnet18, weights: {tmp_path}/w.safetensors}}",)
    recipe = load_recipe(tiny, (*settings, "data.image_size=32")).absolute()
    assert recipe.data.mean is not None and recipe.data.resize_short == 36
    begun(tmp_path / "run", recipe)
    (tmp_path / "w.safetensors").unlink()
    without = load_recipe(tiny, (*settings, "data.image_size=32"))
    assert without.data.mean is None
    must_match(tmp_path / "run", without)
    for change in (
        "data.mean=[0.5, 0.5, 0.5]",
        "data.image_size=48",
        "model.weights=o.safetensors",
    ):
        with pytest.raises(RunError, match="recipe changed"):
            must_match(tmp_path / "run", load_recipe(tiny, (*settings, change)))


@pytest.mark.parametrize("find", [
    find_run, lambda path: open_dataset(DATASETS.spec("image_folder", path=path), Access()),
    lambda path: identification_of(model_spec("resnet18", weights=path + ".h5")),
])  # fmt: skip
def test_the_home_of_nobody_is_a_name(find):
    with pytest.raises(CnnbenchError, match=r"~nobody_here/x|x\.h5 does not say"):
        find("~nobody_here/x")


def test_a_copied_run_is_not_the_newest(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, day in (("old", "01"), ("new", "02")):
        run = begun(tmp_path / "runs" / name, load_recipe(tiny))
        kept = dict(run.environment) | {"created": f"2026-01-{day}T10:00:00+0000"}
        resign(run, kept)
    later = (tmp_path / "runs/old/recipe.yaml").stat().st_mtime + 100
    os.utime(tmp_path / "runs/old/recipe.yaml", (later, later))
    assert newest_run(finished=False).path.name == "new"
    resign(run, kept | {"created": "2026-01-02T10:00:00+1400"})  # which is on the first, at 20:00
    assert newest_run(finished=False).path.name == "new"
    resign(run, kept | {"created": "2026-01-01T12:00:00+1400"})
    assert newest_run(finished=False).path.name == "old"


@pytest.fixture
def read_only(project):
    """A copy of the project that may only be read; the superuser becomes nobody."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "project"
        shutil.copytree(project, copy)
        for folder in (Path(place), copy, *copy.rglob("*")):
            folder.chmod(0o555)
        is_root = not os.geteuid()
        time.strptime("2026", "%Y")  # imports a module that nobody may not read
        if is_root:
            os.seteuid(65534)
        try:
            yield copy
        finally:
            if is_root:
                os.seteuid(0)
            for folder in (copy, *copy.rglob("*")):
                folder.chmod(0o755)
            Path(place).chmod(0o755)


def test_a_run_that_may_only_be_read_is_evaluated(read_only):
    run = read_only / "runs/f"
    data = ("--data-path", read_only / "images")
    done = here("eval", run, "--json", *data)
    assert done.returncode == 0 and json.loads(done.stdout)["examples"] == 8
    assert f"{run}/eval.json was not written: Permission denied\n" in done.stderr
    assert here("predict", run, read_only / "images/test/cat/0.png").returncode == 0
    with tempfile.TemporaryDirectory() as out:
        done = here("export", run, "--saved-model", "--no-verify", "--output", out, *data)
        assert done.returncode == 0 and (Path(out) / "saved_model/metadata.json").is_file()
    done = here("export", run, "--saved-model", "--no-verify", *data)
    assert done.returncode == 6 and "cannot write: Permission denied; --output" in done.stderr


def test_runs_that_may_not_be_looked_for_are_not_none(read_only, monkeypatch):
    monkeypatch.setattr("cnnbench.runs.find.RUNS", read_only / "runs")
    assert newest_run(finished=True).path.is_relative_to(read_only / "runs")
    monkeypatch.setattr(Path, "iterdir", fails(PermissionError(13, "Permission denied")))
    with pytest.raises(RunError, match="cannot look for runs: Permission denied"):
        newest_run(finished=True)


@pytest.mark.parametrize("new", [files.new_file, files.new_folder])
def test_an_error_names_what_was_to_be_written(new):
    with pytest.raises(RunError, match=r"^/proc/a\.png: cannot write"), new(Path("/proc/a.png")):
        pass


def test_what_cannot_be_written_for_another_reason_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        files.keep_json(tmp_path / "file/eval.json", {})
