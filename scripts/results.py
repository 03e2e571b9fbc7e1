"""Records the results of recipes: copies the evidence from runs, and updates the tables.

python scripts/results.py [RUN...]

A run must be finished and evaluated on the test split; for a multi-stage recipe, every stage must
be. The verification of its exports is copied too. Paths of this machine are left out of the copies.
docs/results.md has the tables of all runs and all exports, README.md has a summary.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnbench import load_recipe, open_run
from cnnbench.exports.formats.format import known_formats
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
# The rows of the README's table, all measured on the same kind of machine.
SUMMARY = (
    "fast94_cifar10",
    "resnet20_cifar10",
    "densenet_bc_40_12_short_cifar10",
    "vgg11_bn_short_cifar10",
)
SUMMARY_TITLES = ("recipe", "test top-1", "minutes", "TFLite float32", "TFLite int8")


def main() -> None:
    """Copies the runs given on the command line, and updates the tables of all runs."""
    for path in sys.argv[1:]:
        keep(Path(path))
    for page, text in pages().items():
        files.write_bytes(page, text.encode())


def pages() -> dict[Path, str]:
    """Returns the updated text of each page that has tables."""
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
    """Returns a text with a table put between its markers; the first row has the titles.

    Raises:
        ValueError: the text lacks the markers.
    """
    titles, *rest = rows
    lines = [titles, ("---",) * len(titles), *rest]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    begin = BEGIN.format(name=name)
    start = text.index(begin) + len(begin)
    return text[:start] + table + text[text.index(END, start) :]


def link(text: str, target: Path, page: Path) -> str:
    """Returns a relative Markdown link from a page to a file."""
    return f"[{text}]({Path(os.path.relpath(target, page.parent)).as_posix()})"


def keep(path: Path) -> None:
    """Copies a run's evidence to recipes/results/NAME, or NAME.seedN for another seed."""
    runs = runs_of(path)
    last = runs[-1].recipe
    ours = load_recipe(RECIPES / f"{last.name}.yaml").absolute()
    # The target may have been changed since, to the result that was reached.
    if last != ours.model_copy(update={"target": last.target, "seed": last.seed}):
        sys.exit(f"{path}: its recipe is not recipes/{last.name}.yaml")
    name = last.name if last.seed == ours.seed else f"{last.name}.seed{last.seed}"
    folder = RESULTS / name
    if len(runs) > 1:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / STAGES, folder / STAGES)
    for run in runs:
        keep_run(run, folder / run.path.name if len(runs) > 1 else folder)


def runs_of(path: Path) -> list[Run]:
    """Returns the run of each stage, or the single run in the folder."""
    return find.stage_runs(path) if (path / STAGES).is_file() else [open_run(path)]


def keep_run(run: Run, folder: Path) -> None:
    """Copies the evidence of one run."""
    path = run.path
    if not run.finished or not (path / "eval.json").is_file():
        sys.exit(f"{path}: not finished, or not evaluated on the test split")
    proofs = [path / "saved_model" / "verify.json", *sorted(path.glob("exports/*/verify.json"))]
    found = [json.loads(file.read_text()) for file in proofs if file.is_file()]
    machines = {json.dumps(proof.get("machine")) for proof in found}
    if len(machines) > 1 or "null" in machines:
        sys.exit(f"{path}: exported on several machines, or on an unknown one")
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
    """Returns the row of the table of trained networks for one result."""
    runs = runs_of(folder)
    recipe = runs[-1].recipe
    result: dict[str, Any] = json.loads((runs[-1].path / "eval.json").read_text())
    stages = [run.metrics() for run in runs]
    epochs = [row for rows in stages for row in rows]
    seconds = sum(each["seconds"] for each in epochs)
    images = sum(each["seconds"] * each["throughput_images_per_s"] for each in epochs)
    target = f"{recipe.target.top1}" if recipe.target else ""
    title = link(recipe.name, RECIPES / f"{recipe.name}.yaml", PAGE)
    _, has_seed, seed = folder.name.partition(".seed")
    return (
        f"{title}, seed {seed}" if has_seed else title,
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
    """Yields a row per format and precision, with a cell per network that has all of them."""
    formats = known_formats()
    kinds = [(form, each) for form, about in formats.items() for each in about.precisions]
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
            f"{formats[form].title} {precision}",
            *(cell(each[form, precision]) for each in proven.values()),
        )


def summary(folder: Path) -> tuple[str, ...]:
    """Returns the row of the README for one result: accuracy, time and TFLite artifacts."""
    row = dict(zip(TITLES, trained(folder), strict=True))
    file = folder / "exports.json"
    proven = json.loads(file.read_text())["rows"] if file.is_file() else []
    artifacts = {each["precision"]: each for each in proven if each["format"] == "tflite"}
    cells = []
    for precision in ("float32", "int8"):
        artifact = artifacts.get(precision)
        if artifact is None:
            cells.append("-")
        else:
            size, latency = artifact["size_bytes"] / 1e6, artifact["latency_ms"]["p50"]
            cells.append(f"{size:.3g} MB, {latency:.2g} ms")
    recipe = link(folder.name, RECIPES / f"{folder.name}.yaml", ROOT / "README.md")
    return recipe, row["test top-1"], row["minutes"], *cells


def cell(row: dict[str, Any]) -> str:
    """Returns top-1 and agreement in per cent, size in MB, and latency of one image in ms."""
    if "error" in row:
        return "refused: does not run"
    text = (
        f"{100 * row['top1']:.1f} / {100 * row['agreement']:.1f} / "
        f"{row['size_bytes'] / 1e6:.3g} / {row['latency_ms']['p50']:.3g}"
    )
    return text if row["passed"] else f"refused: {text}"


if __name__ == "__main__":
    main()
