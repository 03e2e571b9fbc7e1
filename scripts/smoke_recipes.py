"""Trains a few steps of every recipe that ships, then evaluates and exports each to TFLite.

Those of AS_TYPED go through the three commands, as when a user types them. The others go through
Python in JOBS processes, which spares each the import of TensorFlow, and without the SavedModel
that `cnnbench train` writes besides: TFLite's converter starts from one anyway.
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
AS_TYPED = ("lenet5_digits", "resnet20_cifar10")
EXAMPLES = 16
# The classes that a network of four steps names are chance. Integers name some otherwise: top-1 of
# sixteen images may fall by four. What a float artifact may differ by is as always.
INT8_TOLERANCE = 4 / EXAMPLES
JOBS = 2


def main() -> None:
    """Runs the recipes named on the command line, or all; exits 1 if any fails."""
    recipes = [Path(name) for name in sys.argv[1:]] or sorted(RECIPES.glob("*.yaml"))
    start = time.perf_counter()
    with ProcessPoolExecutor(JOBS, multiprocessing.get_context("spawn")) as pool:
        passed = sum(pool.map(run, recipes))
    seconds = time.perf_counter() - start
    print(f"{passed} passed, {len(recipes) - passed} failed in {seconds:.0f} s")
    sys.exit(passed < len(recipes))


def run(recipe: Path) -> bool:
    """Trains, evaluates and exports; tells whether all went well."""
    start, word = time.perf_counter(), "ok"
    with tempfile.TemporaryDirectory(prefix="cnnbench-smoke-") as scratch:
        try:
            way = by_commands if recipe.stem in AS_TYPED else by_python
            way(recipe, Path(scratch) / recipe.stem)
        except Exception:  # whatever it is, the other recipes are run too
            traceback.print_exc()
            word = "FAILED"
    print(f"{word}  {recipe.name}  {time.perf_counter() - start:.0f} s", flush=True)
    return word == "ok"


def by_commands(recipe: Path, folder: Path) -> None:
    """Runs the three commands of the README, a process each."""
    for command in (
        ["train", str(recipe), "--smoke", "--run-dir", str(folder)],
        ["eval", str(folder)],
        ["export", str(folder), "--tflite", "--examples", str(EXAMPLES)],
    ):
        subprocess.run(
            [sys.executable, "-m", "cnnbench", *command], stdout=subprocess.DEVNULL, check=True
        )


def by_python(recipe: Path, folder: Path) -> None:
    """Does what the commands do, in this process."""
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
