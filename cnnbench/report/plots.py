"""Pictures, as PNG files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnbench import files
from cnnbench.data.datasets import Access, open_dataset
from cnnbench.data.pipeline import TrainingStream, training_splits
from cnnbench.errors import UsageError
from cnnbench.parts import input_shape
from cnnbench.recipe import Recipe

# Of the grid of augmented images: rows, pixels that a cell has at least, and pixels between cells.
GRID_ROWS, CELL, GAP = 8, 64, 2


def stages(result: dict[str, Any], path: Path) -> None:
    """Draws a network as `show` describes it: its stages in order, and what each of them costs.

    Args:
        result: what `cnnbench.show` returns of a model or a recipe.
        path: of the PNG file.

    Raises:
        UsageError: the file's name does not end in .png.
        RunError: it cannot be written.
    """
    _must_be_png(path)
    from matplotlib.figure import Figure

    facts, rows = result["facts"], result["stages"]
    shapes = [facts["input"], *(row["output"] for row in rows)]
    names = ["images", *(row["stage"] for row in rows)]
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(names)), layout="constrained")
    graph, params, macs = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    graph.set_xlim(0, 1)
    graph.set_ylim(len(names) - 0.4, -0.6)
    graph.axis("off")
    box = {"boxstyle": "round,pad=0.35", "facecolor": "#e8eef7", "edgecolor": "#33527a"}
    for y, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        text = f"{name}   {' x '.join(map(str, shape))}"
        graph.text(0.5, y, text, ha="center", va="center", bbox=box)
        if y:
            ends = {"xy": (0.5, y - 0.27), "xytext": (0.5, y - 0.73)}
            graph.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": "#33527a"})
    for axes, key, title in ((params, "params", "parameters"), (macs, "macs", "MACs")):
        values = [row[key] for row in rows]
        bars = axes.barh(range(1, len(names)), values, height=0.6, color="#7a9cc6")
        axes.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=8)
        axes.set_title(f"{title}: {facts[key]:,}", fontsize=10)
        axes.set_xlim(0, 1.6 * max(*values, 1))
        axes.axis("off")
    figure.suptitle(facts.get("recipe") or facts["model"])
    with files.new_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def pareto(result: dict[str, Any], path: Path) -> None:
    """Draws accuracy against zipped size and against latency, with the best networks joined.

    Args:
        result: what `cnnbench.comparison.compare` returns.
        path: of the PNG file.

    Raises:
        UsageError: the file's name does not end in .png.
        RunError: it cannot be written.
    """
    _must_be_png(path)
    from matplotlib.figure import Figure

    rows = result["rows"]
    figure = Figure(figsize=(11, 4.5 + 0.1 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    costs = (
        ("zipped TFLite file, KB", [row["zip_bytes"] / 1e3 for row in rows]),
        ("latency of one image, ms (median)", [row["latency_ms"]["p50"] for row in rows]),
    )
    top1 = [100 * row["top1"] for row in rows]
    for axes, (title, values) in zip(panels, costs, strict=True):
        for i, (row, x, y) in enumerate(zip(rows, values, top1, strict=True)):
            name = f"{row['name']}, {row['precision']}"
            axes.scatter(x, y, s=60, c=f"C{i}", marker="os^Dv"[i // 10 % 5], label=name, zorder=2)
        front = _front(list(zip(values, top1, strict=True)))
        axes.plot(*zip(*front, strict=True), color="#888888", drawstyle="steps-post", zorder=1)
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.margins(0.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"top-1 of {result['examples']} test images, %")
    names = panels[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=2, frameon=False)
    with files.new_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that none of less cost is as good as, from the least cost on."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def augmented(recipe: Recipe, path: Path, access: Access, epochs: int = 7) -> None:
    """Draws a grid of training images: a row each, as stored and as augmented in some epochs.

    What is drawn is what the network is given in these epochs, before normalisation.

    Args:
        recipe: what would be trained.
        path: of the PNG file.
        access: where data sets lie.
        epochs: how many, from the first; the columns after that of the stored images.

    Raises:
        UsageError: the file's name does not end in .png, or the recipe does not fit the data.
        DataError: the data set is not there.
        RunError: the file cannot be written.
    """
    _must_be_png(path)
    dataset = open_dataset(recipe.data, access)
    examples = training_splits(dataset, recipe.data).train
    size, classes = input_shape(recipe.data, dataset.shape)[:2], len(dataset.classes)
    stored = TrainingStream(examples, recipe.data, size, [], recipe.seed, classes)
    stream = TrainingStream(examples, recipe.data, size, recipe.augment, recipe.seed, classes)
    _, positions = stream.positions(0)
    columns = [stored.batch(positions, 0)[0]]
    for epoch in range(epochs):
        images, labels = stream.batch(positions, epoch)
        step = np.int64(epoch * stream.steps_per_epoch)
        images, _ = stream.augmented(images, labels, positions.astype(np.int64), step)
        columns.append(np.asarray(images))
    cells = np.stack([column[:GRID_ROWS] for column in columns], axis=1)
    with files.new_file(path) as partial:
        _grid(cells).save(partial, format="PNG")


def _grid(cells: np.ndarray) -> Image.Image:
    """Returns (rows, columns, height, width, channels) uint8 as one picture, enlarged if small."""
    scale = math.ceil(CELL / min(cells.shape[2:4]))
    cells = cells.repeat(scale, 2).repeat(scale, 3)
    if cells.shape[-1] == 1:
        cells = cells.repeat(3, -1)
    gaps = ((0, 0), (0, 0), (GAP, 0), (GAP, 0), (0, 0))
    cells = np.pad(cells, gaps, constant_values=255)
    rows, columns, height, width, channels = cells.shape
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return Image.fromarray(picture)


def _must_be_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"cannot draw {path.name!r}", allowed="a file .png")
