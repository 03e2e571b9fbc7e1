"""Trains every shipped recipe for a few steps, then evaluates it and exports it to TFLite.

The recipes in BY_COMMANDS are run with the three commands, as a user would. The others are run from
Python in JOBS processes, which saves importing TensorFlow for each, and without the SavedModel that
`cnnbench train` also writes: TFLite's converter starts from one anyway.
"""

import multiprocessing
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
BY_COMMANDS = ("lenet5_digits", "resnet20_cifar10")
EXAMPLES = 16
# After four steps, predictions are at chance level and int8 changes some of them: top-1 may drop by
# 4 of 16 images. Float artifacts have the usual tolerance.
INT8_TOLERANCE = 4 / EXAMPLES
JOBS = 2


def main() -> None:
    """Runs the recipes given on the command line, or all; exits with 1 if any fails."""
    recipes = [Path(name) for name in sys.argv[1:]] or sorted(RECIPES.glob("*.yaml"))
    start = time.perf_counter()
    with ProcessPoolExecutor(JOBS, multiprocessing.get_context("spawn")) as pool:
        passed = sum(pool.map(run, recipes))
    seconds = time.perf_counter() - start
    print(f"{passed} passed, {len(recipes) - passed} failed in {seconds:.0f} s")
    sys.exit(passed < len(recipes))


def run(recipe: Path) -> bool:
    """Trains, evaluates and exports; returns whether everything succeeded."""
    start, status = time.perf_counter(), "ok"
    with tempfile.TemporaryDirectory(prefix="cnnbench-smoke-") as scratch:
        try:
            run_recipe = by_commands if recipe.stem in BY_COMMANDS else by_python
            run_recipe(recipe, Path(scratch) / recipe.stem)
        except Exception:  # go on with the other recipes
            traceback.print_exc()
            status = "FAILED"
    print(f"{status}  {recipe.name}  {time.perf_counter() - start:.0f} s", flush=True)
    return status == "ok"


def by_commands(recipe: Path, folder: Path) -> None:
    """Runs the README's three commands, each in its own process."""
    for command in (
        ["train", str(recipe), "--smoke", "--run-dir", str(folder)],
        ["eval", str(folder)],
        ["export", str(folder), "--tflite", "--examples", str(EXAMPLES)],
    ):
        subprocess.run(
            [sys.executable, "-m", "cnnbench", *command], stdout=subprocess.DEVNULL, check=True
        )


def by_python(recipe: Path, folder: Path) -> None:
    """Does the same as the commands, in this process."""
    import cnnbench
    from cnnbench.data.open import Access
    from cnnbench.exports.options import ExportOptions
    from cnnbench.training.smoke import smoke

    access = Access(None)
    small, note = smoke(cnnbench.load_recipe(recipe), access)
    print(f"{recipe.stem}: {note}", file=sys.stderr, flush=True)
    trained = cnnbench.open_run(cnnbench.train(small, access=access, run_dir=folder).path)
    cnnbench.evaluate(trained)
    is_int8 = any(stage.name == "qat" for stage in small.compress)
    options = ExportOptions(examples=EXAMPLES, tolerance=INT8_TOLERANCE if is_int8 else None)
    cnnbench.export(trained, ["tflite"], options=options)


if __name__ == "__main__":
    main()
