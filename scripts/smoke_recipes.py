"""Trains a few steps of every recipe that ships, then evaluates and exports each."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"


def main() -> None:
    """Runs the recipes named on the command line, or all; exits 1 if any command fails."""
    recipes = [Path(name) for name in sys.argv[1:]] or sorted(RECIPES.glob("*.yaml"))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="cnnbench-smoke-") as scratch:
        for recipe in recipes:
            run = str(Path(scratch) / recipe.stem)
            start = time.perf_counter()
            ok = all(
                subprocess.run(
                    [sys.executable, "-m", "cnnbench", *command], stdout=subprocess.DEVNULL
                ).returncode
                == 0
                for command in (
                    ["train", str(recipe), "--smoke", "--run-dir", run],
                    ["eval", run],
                    ["export", run, "--tflite", "--examples", "32"],
                )
            )
            failed += not ok
            seconds = time.perf_counter() - start
            print(f"{'ok' if ok else 'FAILED'}  {recipe.name}  {seconds:.0f} s", flush=True)
    print(f"{len(recipes) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
