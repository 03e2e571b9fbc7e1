"""Keeps the proof of what recipes reach: copies runs, and writes the table in recipes/README.md.

python scripts/results.py [RUN...]

A run must be finished and evaluated on the test split. What names this machine's folders is left
out of the copies.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from cnnbench import files, load_recipe, open_run

RECIPES = Path(__file__).parents[1] / "recipes"
RESULTS, README = RECIPES / "results", RECIPES / "README.md"
BEGIN, END = "<!-- the table begins -->\n", "<!-- the table ends -->\n"
TITLES = (
    "recipe", "network", "epochs", "test top-1", "target", "NLL", "ECE", "minutes", "images/s",
)  # fmt: skip


def main() -> None:
    """Copies the runs named on the command line, and writes the table of all."""
    for path in sys.argv[1:]:
        keep(Path(path))
    before, _, rest = README.read_text().partition(BEGIN)
    files.write_bytes(README, (before + BEGIN + table() + END + rest.partition(END)[2]).encode())


def keep(path: Path) -> None:
    """Copies what proves a run's result to recipes/results/NAME."""
    run = open_run(path)
    if not run.finished or not (path / "eval.json").is_file():
        sys.exit(f"{path}: not finished, or not evaluated on the test split")
    if run.recipe != load_recipe(RECIPES / f"{run.recipe.name}.yaml").absolute():
        sys.exit(f"{path}: its recipe is not recipes/{run.recipe.name}.yaml")
    folder = RESULTS / run.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.yaml", "metrics.jsonl"):
        shutil.copyfile(path / name, folder / name)
    environment = json.loads((path / "environment.json").read_text())
    environment["command"] = [Path(word).name for word in environment["command"][:2]]
    environment["data"]["data_dir"] = None
    for other in environment.get("runs", {}).values():
        other["path"] = Path(other["path"]).name
    del environment["sha256"]
    files.write_json(folder / "environment.json", files.signed(environment))
    result = json.loads((path / "eval.json").read_text())
    files.write_json(folder / "eval.json", result | {"run": run.recipe.name})


def table() -> str:
    """Returns the table of all that is kept, in Markdown."""
    rows = [TITLES, ("---",) * len(TITLES)]
    rows += [row(folder) for folder in sorted(RESULTS.iterdir())]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def row(folder: Path) -> tuple[str, ...]:
    """Returns the cells of one result."""
    recipe = open_run(folder).recipe
    result: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(each["seconds"] for each in epochs)
    images = sum(each["seconds"] * each["throughput_images_per_s"] for each in epochs)
    target = f"{recipe.target.top1}" if recipe.target else ""
    return (
        f"[{recipe.name}]({recipe.name}.yaml)",
        recipe.model.name,
        str(len(epochs)),
        f"{result['top1']:.4f}",
        target,
        f"{result['nll']:.3f}",
        f"{result['ece']:.3f}",
        f"{seconds / 60:.0f}",
        f"{images / seconds:.0f}",
    )


if __name__ == "__main__":
    main()
