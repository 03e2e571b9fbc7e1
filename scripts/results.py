"""Keeps the proof of what recipes reach: copies runs, and writes the tables of them.

python scripts/results.py [RUN...]

A run must be finished and evaluated on the test split; of a recipe of several stages, each of them.
What its exports were proven to be is kept with it. What names this machine's folders is left out of
the copies. docs/results.md has the tables of all runs and of all exports, README.md a short one.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnbench import load_recipe, open_run
from cnnbench.exports.formats.format import FORMATS
from cnnbench.runs import find
from cnnbench.runs.run import STAGES, Run
from cnnbench.system import files

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
RESULTS = RECIPES / "results"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- table: {name} -->\n", "<!-- end of table -->\n"
TITLES = (
    "recipe", "network", "epochs", "test top-1", "target", "NLL", "ECE", "minutes", "images/s",
)  # fmt: skip
# The rows of the README: measured on one kind of machine.
SUMMARY = (
    "fast94_cifar10",
    "resnet20_cifar10",
    "densenet_bc_40_12_short_cifar10",
    "vgg11_bn_short_cifar10",
)
SUMMARY_TITLES = ("recipe", "test top-1", "minutes", "TFLite float32", "TFLite int8")


def main() -> None:
    """Copies the runs named on the command line, and writes the tables of all."""
    for path in sys.argv[1:]:
        keep(Path(path))
    for page, text in pages().items():
        files.write_bytes(page, text.encode())


def pages() -> dict[Path, str]:
    """Returns the text of each page that has tables, with the tables of what is kept."""
    kept = sorted(RESULTS.iterdir())
    tables = {
        PAGE: {"trained": [TITLES, *map(trained, kept)], "exports": list(exported(kept))},
        ROOT / "README.md": {
            "summary": [SUMMARY_TITLES, *(summary(RESULTS / name) for name in SUMMARY)]
        },
    }
    texts = {page: page.read_text() for page in tables}
    for page, named in tables.items():
        for name, rows in named.items():
            texts[page] = with_table(texts[page], name, rows)
    return texts


def with_table(text: str, name: str, rows: list[tuple[str, ...]]) -> str:
    """Puts a table between its marks in a text; the first row is the titles.

    Raises:
        ValueError: the text has no such marks.
    """
    titles, *rest = rows
    lines = [titles, ("---",) * len(titles), *rest]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    begin = BEGIN.format(name=name)
    start = text.index(begin) + len(begin)
    return text[:start] + table + text[text.index(END, start) :]


def link(text: str, target: Path, page: Path) -> str:
    """Returns a link from a page to a file."""
    return f"[{text}]({Path(os.path.relpath(target, page.parent)).as_posix()})"


def keep(path: Path) -> None:
    """Copies what proves a run's result to recipes/results/NAME, or NAME.seedN if that differs."""
    runs = runs_of(path)
    last = runs[-1].recipe
    ours = load_recipe(RECIPES / f"{last.name}.yaml").absolute()
    # A goal that was set before may have become what was reached.
    if last != ours.model_copy(update={"target": last.target, "seed": last.seed}):
        sys.exit(f"{path}: its recipe is not recipes/{last.name}.yaml")
    folder = RESULTS / (last.name + f".seed{last.seed}" * (last.seed != ours.seed))
    if len(runs) > 1:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / STAGES, folder / STAGES)
    for run in runs:
        keep_run(run, folder / run.path.name if len(runs) > 1 else folder)


def runs_of(path: Path) -> list[Run]:
    """Returns the run of each stage, or the one that lies there."""
    return find.stages(path) if (path / STAGES).is_file() else [open_run(path)]


def keep_run(run: Run, folder: Path) -> None:
    """Copies what proves the result of one training."""
    path = run.path
    if not run.finished or not (path / "eval.json").is_file():
        sys.exit(f"{path}: not finished, or not evaluated on the test split")
    proofs = [path / "saved_model" / "verify.json", *sorted(path.glob("exports/*/verify.json"))]
    found = [json.loads(file.read_text()) for file in proofs if file.is_file()]
    machines = {json.dumps(proof.get("machine")) for proof in found}
    if len(machines) > 1 or "null" in machines:
        sys.exit(f"{path}: exported on several machines, or on one that is not known")
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
    if rows := [row for proof in found for row in proof["rows"]]:
        machine = found[0]["machine"]
        files.write_json(folder / "exports.json", {"machine": machine, "rows": rows})


def trained(folder: Path) -> tuple[str, ...]:
    """Returns the cells of one result."""
    runs = runs_of(folder)
    recipe = runs[-1].recipe
    result: dict[str, Any] = json.loads((runs[-1].path / "eval.json").read_text())
    stages = [run.metrics() for run in runs]
    epochs = [row for rows in stages for row in rows]
    seconds = sum(each["seconds"] for each in epochs)
    images = sum(each["seconds"] * each["throughput_images_per_s"] for each in epochs)
    target = f"{recipe.target.top1}" if recipe.target else ""
    _, dot, seed = folder.name.partition(".seed")
    return (
        link(recipe.name, RECIPES / f"{recipe.name}.yaml", PAGE) + f", seed {seed}" * bool(dot),
        recipe.model.name,
        " + ".join(str(len(each)) for each in stages),
        f"{result['top1']:.4f}",
        target,
        f"{result['nll']:.3f}",
        f"{result['ece']:.3f}",
        f"{seconds / 60:.0f}",
        f"{images / seconds:.0f}",
    )


def exported(kept: list[Path]) -> Iterator[tuple[str, ...]]:
    """Yields a row for each format and precision, with a cell for each network that has all."""
    kinds = [(form, each) for form, about in FORMATS.items() for each in about.precisions]
    proven: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for folder in kept:
        if (file := folder / "exports.json").is_file():
            proof = json.loads(file.read_text())
            found = {(row["format"], row["precision"]): row for row in proof["rows"]}
            if found.keys() >= set(kinds):
                name = link(open_run(folder).recipe.model.name, file, PAGE)
                proven[f"{name}, {proof['machine']['cpu'].replace('(R)', '')}"] = found
    yield ("", *proven)
    for form, precision in kinds:
        yield (
            f"{FORMATS[form].title} {precision}",
            *(cell(each[form, precision]) for each in proven.values()),
        )


def summary(folder: Path) -> tuple[str, ...]:
    """Returns the cells of the README for one result: accuracy, time, and its TFLite files."""
    row = dict(zip(TITLES, trained(folder), strict=True))
    file = folder / "exports.json"
    proven = json.loads(file.read_text())["rows"] if file.is_file() else []
    artifacts = {each["precision"]: each for each in proven if each["format"] == "tflite"}
    cells = [
        f"{found['size_bytes'] / 1e6:.3g} MB, {found['latency_ms']['p50']:.2g} ms"
        if (found := artifacts.get(precision))
        else "-"
        for precision in ("float32", "int8")
    ]
    recipe = link(folder.name, RECIPES / f"{folder.name}.yaml", ROOT / "README.md")
    return recipe, row["test top-1"], row["minutes"], *cells


def cell(row: dict[str, Any]) -> str:
    """Returns top-1 and agreement, in per cent, megabytes, and milliseconds an image."""
    if "error" in row:
        return "refused: does not run"
    return "refused: " * (not row["passed"]) + (
        f"{row['top1']:.1%} / {row['agreement']:.1%} / {row['size_bytes'] / 1e6:.3g} / "
        f"{row['latency_ms']['p50']:.3g}"
    ).replace("%", "")


if __name__ == "__main__":
    main()
