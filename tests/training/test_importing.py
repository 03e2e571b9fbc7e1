"""Published weights as a run."""

import json
import shutil

import numpy as np
import pytest
from conftest import cnnbench, here
from PIL import Image
from safetensors.numpy import save_file

from cnnbench.data.sources.imagenet import class_names
from cnnbench.errors import VerificationError
from cnnbench.evaluation.photographs import check_photographs
from cnnbench.models.build import build_model
from cnnbench.models.pretrained import load
from cnnbench.runs.run import open_run

RECIPE = """
name: imported
model: {name: mobilenet_v3_small}
data:
  {name: imagenet2012, image_size: 64, resize_short: 72,
   mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 1}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def published(tmp_path):
    """A function that writes random weights for so many classes as timm would."""

    def write(classes):
        model = build_model("mobilenet_v3_small", (64, 64, 3), classes)
        names = load.names_of("mobilenet_v3_small")
        state = {}
        for weight in model.weights:
            array = weight.numpy()
            if array.ndim == 4:
                depthwise = "depthwise" in weight.path
                array = array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
            elif array.ndim == 2:
                array = array.T
                array = array[:, :, None, None] if "head_dense" in weight.path else array
            state[names.torch_name("mobilenet_v3_small", weight.path)] = np.ascontiguousarray(array)
        metadata = {"weights_source": "timm:tf_mobilenetv3_small_100"}
        save_file(state, tmp_path / "published.safetensors", metadata)
        return model, f"model.weights={tmp_path}/published.safetensors"

    return write


@pytest.mark.slow
def test_imported_weights_predict_and_export_under_the_names_of_the_classes(
    recipe, published, tmp_path
):
    model, setting = published(1000)
    done = cnnbench("import", recipe, "--set", setting, "--run-dir", tmp_path / "run")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "run"), done.stderr
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).resize((72, 72)).save(tmp_path / "photo.png")
    answer = cnnbench("predict", tmp_path / "run", tmp_path / "photo.png", "--json")
    assert answer.returncode == 0, answer.stderr
    (row,) = json.loads(answer.stdout)["images"]
    inner = np.asarray(Image.open(tmp_path / "photo.png"))[4:68, 4:68]
    logits = np.asarray(model(inner[None] / np.float32(127.5) - 1, training=False))[0]
    best = list(class_names().values())[int(logits.argmax())]
    assert row["top"][0]["class"] == best
    (tmp_path / "photos" / best).mkdir(parents=True)
    shutil.copy(tmp_path / "photo.png", tmp_path / "photos" / best)
    found = check_photographs(open_run(tmp_path / "run"), tmp_path / "photos")
    assert (found["images"], found["top1"], found["top5"]) == (1, 1.0, 1.0)
    other = next(name for name in class_names().values() if name != best)
    (tmp_path / "photos" / best).rename(tmp_path / "photos" / other)
    with pytest.raises(VerificationError, match="0 of 1 photographs"):
        check_photographs(open_run(tmp_path / "run"), tmp_path / "photos")
    exported = cnnbench("export", tmp_path / "run", "--tflite", "--no-verify")
    assert exported.returncode == 0, exported.stderr
    missing = cnnbench("eval", tmp_path / "run", "--data-dir", tmp_path)
    assert missing.returncode == 3 and "imagenet2012" in missing.stderr


def test_other_classes_are_refused(recipe, published, tmp_path):
    _, setting = published(10)
    done = here("import", recipe, "--set", setting, "--run-dir", tmp_path / "run")
    assert done.returncode == 2 and "weights have 10 classes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_weights_is_refused(recipe):
    done = here("import", recipe)
    assert done.returncode == 2 and "cnnbench list presets" in done.stderr


def test_a_recipe_that_trains_on_from_a_run_is_refused(recipe, published, tmp_path):
    _, setting = published(1000)
    stages = "compress=[{name: prune, sparsity: 0.5}]"
    done = here("import", recipe, "--set", setting, "--set", stages)
    assert done.returncode == 2 and "init and compress are for training" in done.stderr


def test_imagenets_classes_have_a_thousand_names():
    names = class_names()
    assert len(set(names.values())) == len(names) == 1000
    assert list(names) == sorted(names)
    assert names["n01440764"] == "tench" and names["n02012849"] == "crane (n02012849)"
