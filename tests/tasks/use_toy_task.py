"""What the test of a toy task runs in a process of its own: `use_toy_task.py FOLDER`."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import toy_regression  # noqa: F401 - registers the task before recipes are defined
from click.testing import CliRunner
from PIL import Image

import cnnbench
from cnnbench.cli import cli
from cnnbench.errors import InterruptedRun, VerificationError
from cnnbench.evaluation.photographs import check_photographs
from cnnbench.training.callbacks import Callbacks

RECIPE = """
name: toy
model: {name: toy_net}
data: {name: discs, batch_size: 16, validation: 32}
optimizer: {name: adam, lr: 3.0e-2}
train: {epochs: 12, steps_per_call: 1, early_stopping: {patience: 12}}
target: {closeness: 0.9, source: "a test"}
"""


class Interrupting(Callbacks):
    """Asks training to stop at a step."""

    def progressed(self, step, loss, score, images_per_s):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    file = folder / "toy.yaml"
    file.write_text(RECIPE)
    recipe = cnnbench.load_recipe(file)
    whole = cnnbench.train(recipe, run_dir=folder / "whole")
    try:
        cnnbench.train(recipe, run_dir=folder / "halves", callbacks=Interrupting())
    except InterruptedRun:
        cnnbench.resume(folder / "halves")
    Image.fromarray(np.full((9, 12), 128, np.uint8)).save(folder / "grey.png")
    photographs = folder / "photographs"
    photographs.mkdir()
    shutil.copy(folder / "grey.png", photographs / "0.5_grey.png")
    shutil.copy(folder / "grey.png", photographs / "grey.png")
    checked = check_photographs(whole, photographs)
    (photographs / "0.5_grey.png").rename(photographs / "0.1_grey.png")
    try:
        check_photographs(whole, photographs)
    except VerificationError as error:
        checked["refusal"] = error.what
    found = {
        "check": checked,
        "task": recipe.task.name,
        "loss": recipe.loss.name,
        "metric": recipe.train.early_stopping.metric,
        "evaluation": cnnbench.evaluate(whole),
        "rows": cnnbench.export(whole, ["onnx"]),
        "prediction": cnnbench.predict(whole, [folder / "grey.png"]),
        "output": {},
    }
    for command in (
        ["eval", str(whole.path)],
        ["export", str(whole.path), "--tflite"],
        ["predict", str(whole.path), str(folder / "grey.png")],
        ["show", str(file)],
        ["train", str(file), "--smoke", "--run-dir", str(folder / "smoke")],
    ):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, (command, done.output, done.exception)
        found["output"][command[0]] = done.output
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
