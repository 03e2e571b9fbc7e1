"""The commands as a user types them."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from conftest import RECIPES, ROOT, cnnbench, here
from PIL import Image
from rich.console import Console

from cnnbench import load_recipe
from cnnbench.cli import cli
from cnnbench.cli.options import FilePath
from cnnbench.report import tables
from cnnbench.report.describe import show_recipe

BAD = sorted((ROOT / "tests" / "bad_recipes").glob("*.yaml"))
NO_PLACE = {"data_not_there"}  # found in the data, not in the text


# Runs each recipe in a process of its own, which has the command line's modules already.
REFUSALS = """
import json, os, pathlib, sys
from cnnbench.cli import main
import cnnbench.recipe.load, cnnbench.registry.kinds, cnnbench.training.stages

found = {}
for recipe in sys.argv[2:]:
    place = pathlib.Path(sys.argv[1], pathlib.Path(recipe).stem)
    place.mkdir()
    streams = [place.with_suffix(end) for end in (".out", ".err", ".imported")]
    if not (child := os.fork()):
        os.chdir(place)
        for number, stream in enumerate(streams[:2], start=1):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
        code = 70  # of an error that nobody foresaw, whose traceback is in stderr
        try:
            main(["train", recipe, "--run-dir", "run"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:  # its traceback goes to stderr, as the interpreter's would
            sys.excepthook(*sys.exc_info())
        streams[2].write_text(str("tensorflow" in sys.modules))
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    found[recipe] = {
        "code": os.waitstatus_to_exitcode(status),
        "stdout": streams[0].read_text(), "stderr": streams[1].read_text(),
        "tensorflow": streams[2].read_text(), "seconds": usage.ru_utime + usage.ru_stime,
        "left": os.listdir(place),
    }
print(json.dumps(found))
"""


def test_help_imports_no_more_than_it_needs():
    command = [sys.executable, "-X", "importtime", "-m", "cnnbench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "Commands:" in done.stdout and {"click", "cnnbench.cli.app"} <= modules
    # Each of these takes a tenth of a second or more, and TensorFlow takes six.
    assert not modules & {"tensorflow", "keras", "numpy", "pydantic", "rich", "yaml"}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What training each of the bad recipes ends in."""
    command = [sys.executable, "-c", REFUSALS, tmp_path_factory.mktemp("bad"), *BAD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_has_the_three_commands_on_a_line_each():
    rows = CliRunner().invoke(cli, ["--help"]).output.splitlines()
    start = rows.index("  cnnbench train recipes/lenet5_digits.yaml")
    assert rows[start : start + 4] == [
        rows[start],
        "  cnnbench eval",
        "  cnnbench export --tflite",
        "",
    ]
    assert not any("\b" in row or r"\b" in row for row in rows)


@pytest.mark.parametrize("recipe", BAD, ids=lambda path: path.stem)
def test_a_bad_recipe_is_refused(refusals, recipe):
    done = refusals[str(recipe)]
    assert done["code"] in (2, 3), done["stderr"]
    assert done["stderr"].startswith("error: ") and "Traceback" not in done["stderr"]
    assert done["stdout"] == "" and done["left"] == []
    assert len(done["stderr"]) < 1000
    assert recipe.name in done["stderr"] or recipe.stem in NO_PLACE
    assert done["tensorflow"] == "False"
    # Processor time, of which all but the bombs take a hundredth.
    assert done["seconds"] < 5


def test_a_bad_recipe_is_refused_as_typed(tmp_path):
    done = cnnbench("train", BAD[0], "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith("error: ") and BAD[0].name in done.stderr


@pytest.mark.parametrize("recipe", ["not/there.yaml", "."])
def test_a_recipe_that_is_no_file_is_refused(recipe, tmp_path):
    done = here("train", recipe, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search("cannot read the recipe|not a file", done.stderr)
    assert "Traceback" not in done.stderr


def test_every_problem_is_told_at_once():
    done = here("train", ROOT / "tests" / "bad_recipes" / "several.yaml")
    rows = done.stderr.splitlines()
    assert len(rows) == 3
    expected = ((2, "seed"), (5, "optimizer.lr"), (6, "did you mean epochs?"))
    for row, (line, word) in zip(rows, expected, strict=True):
        assert f"several.yaml:{line}:" in row and word in row


def test_set_goes_through_the_same_checks(small, tmp_path):
    done = here("train", small, "--set", "optimizer.momentun=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--set optimizer.momentun=1: unknown key" in done.stderr
    assert "did you mean momentum?" in done.stderr


def test_the_three_commands_work_as_typed(tmp_path):
    shutil.copytree(RECIPES, tmp_path / "recipes")
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "no data")}
    trained = cnnbench(
        "train", "recipes/lenet5_fashion_mnist.yaml", "--smoke", cwd=tmp_path, env=environment
    )
    assert trained.returncode == 0, trained.stderr
    assert "synthetic images" in trained.stderr
    run = tmp_path / trained.stdout.splitlines()[-1]
    assert (run / "saved_model" / "saved_model.pb").is_file()

    evaluated = cnnbench("eval", "--json", cwd=tmp_path, env=environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert run.name in evaluated.stderr
    assert json.loads(evaluated.stdout) == json.loads((run / "eval.json").read_text())

    exported = cnnbench("export", "--tflite", cwd=tmp_path, env=environment)
    assert exported.returncode == 0, exported.stderr
    (row,) = json.loads((run / "exports/tflite/verify.json").read_text())["rows"]
    assert row["passed"] and row["agreement"] == 1.0


def test_predict_takes_images_of_any_format(digits_run, tmp_path):
    picture = Image.new("RGB", (50, 30), "white")
    files = []
    for suffix in ("png", "jpg", "bmp", "gif", "webp", "tif"):
        files.append(tmp_path / f"image.{suffix}")
        picture.save(files[-1])
    done = cnnbench("predict", digits_run.path, *files, "--top", 3, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["images"]
    assert [row["file"] for row in rows] == list(map(str, files))
    assert all(len(row["top"]) == 3 for row in rows)


def test_predict_refuses_what_is_no_image(digits_run, tmp_path):
    (tmp_path / "letter.jpg").write_text("dear sir")
    done = here("predict", digits_run.path, tmp_path / "letter.jpg")
    assert done.returncode == 3
    assert "letter.jpg: cannot decode" in done.stderr and "Traceback" not in done.stderr


def test_predict_does_not_wait_for_a_pipe(digits_run, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/null"):
        done = here("predict", digits_run.path, path)
        assert done.returncode == 3 and "must be a file" in done.stderr


def test_one_bad_image_costs_predict_one_answer(digits_run, tmp_path):
    good = [tmp_path / f"{i}.png" for i in range(3)]
    for file, color in zip(good, ("white", "black", "grey"), strict=True):
        Image.new("RGB", (9, 9), color).save(file)
    cut, gone = tmp_path / "cut.png", tmp_path / "gone.png"
    cut.write_bytes(good[0].read_bytes()[:45])
    alone = json.loads(here("predict", digits_run.path, *good, "--json").stdout)["images"]
    done = here("predict", digits_run.path, good[0], cut, *good[1:], gone, "--json")
    rows = json.loads(done.stdout)["images"]
    assert done.returncode == 3 and "Traceback" not in done.stderr
    answered = [row for row in rows if "top" in row]
    assert [row["file"] for row in answered] == list(map(str, good))
    for row, expected in zip(answered, alone, strict=True):
        for found, wanted in zip(row["top"], expected["top"], strict=True):
            assert found["probability"] == pytest.approx(wanted["probability"], rel=1e-5)
    assert [row["file"] for row in rows if "error" in row] == [str(cut), str(gone)]
    assert f"{cut}: cannot decode" in done.stderr and f"{gone}: cannot read" in done.stderr
    done = here("predict", digits_run.path, good[0], cut)
    assert done.returncode == 3 and "0.png" in done.stdout and "cut.png" in done.stderr


def test_schema_describes_every_part():
    schema = json.loads(here("schema").stdout)
    text = json.dumps(schema)
    assert "model_resnet20" in text.lower() and "random_crop" in text


def test_show_describes_a_model_and_a_recipe():
    model = json.loads(here("show", "resnet20", "--json").stdout)
    assert model["facts"]["params"] == 269_722
    assert sum(stage["params"] for stage in model["stages"]) == 269_722
    assert sum(stage["macs"] for stage in model["stages"]) == model["facts"]["macs"]
    asked = CliRunner().invoke(cli, ["show", "resnet56_cifar100", "--json"])
    assert json.loads(asked.stdout)["facts"]["classes"] == 100


def test_show_tells_the_learning_rate_by_linear_scaling(small):
    described = show_recipe(load_recipe(small))
    assert described["learning_rate"] == {"lr": 0.05, "batch_size": 16, "lr_per_256_images": 0.8}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.model(described))
    told = "lr 0.05 at batch 16, i.e. 0.8 per 256 images (Goyal et al. 2017)"
    assert told in console.export_text()


def test_eval_without_a_run_says_so(tmp_path):
    done = here("eval", cwd=tmp_path)
    assert done.returncode == 2 and "no finished run" in done.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = here("eval", tmp_path)
    assert done.returncode == 6 and "not a run directory" in done.stderr


def test_python_in_five_lines(tmp_path, tiny):
    import cnnbench as package

    recipe = package.load_recipe(tiny, ("train.epochs=2",))
    model = package.build_model(recipe.model, (16, 16, 3), 10)
    run = package.train(recipe, run_dir=tmp_path / "run")
    again = package.open_run(run.path)
    assert model.output_shape == (None, 10)
    assert again.recipe == recipe and again.finished and len(again.metrics()) == 2


def commands(group):
    """All commands of a group and of the groups in it."""
    for command in group.commands.values():
        yield command
        yield from commands(command) if hasattr(command, "commands") else ()


def test_every_path_of_the_command_line_knows_the_home_folder():
    taken = [each for command in commands(cli) for each in command.params]
    paths = [each for each in taken if isinstance(each.type, click.Path)]
    assert len(paths) > 10
    assert [each.name for each in paths if not isinstance(each.type, FilePath)] == []
