"""Plots, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnbench.errors import UsageError
from cnnbench.system import files

if TYPE_CHECKING:
    from cnnbench.evaluation.compare import Comparison


def stages(result: dict[str, Any], path: Path) -> None:
    """Draws the stages of a network in order, with the parameters and MACs of each.

    Args:
        result: from `cnnbench.report.describe.show_model` or `show_recipe`.
        path: path of the PNG file.

    Raises:
        UsageError: the file's name does not end in .png.
        RunError: the file cannot be written.
    """
    must_be_png(path)
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


def pareto(result: Comparison, path: Path) -> None:
    """Plots accuracy against zipped size and against latency, each with its Pareto front.

    Args:
        result: from `cnnbench.evaluation.compare.compare`.
        path: path of the PNG file.

    Raises:
        UsageError: the file's name does not end in .png.
        RunError: the file cannot be written.
    """
    must_be_png(path)
    from matplotlib.figure import Figure

    rows = result["rows"]
    figure = Figure(figsize=(11, 4.5 + 0.1 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    costs = (
        ("zipped TFLite file, KB", [row["zip_bytes"] / 1e3 for row in rows]),
        ("latency of one image, ms (median)", [row["latency_ms"]["p50"] for row in rows]),
    )
    score = result["score"]
    scored: Sequence[Mapping[str, Any]] = rows  # by the task's key
    scores = [100 * row[score["key"]] for row in scored]
    for axes, (title, values) in zip(panels, costs, strict=True):
        for i, (row, x, y) in enumerate(zip(rows, values, scores, strict=True)):
            name = f"{row['name']}, {row['precision']}"
            axes.scatter(x, y, s=60, c=f"C{i}", marker="os^Dv"[i // 10 % 5], label=name, zorder=2)
        front = _front(list(zip(values, scores, strict=True)))
        axes.plot(*zip(*front, strict=True), color="#888888", drawstyle="steps-post", zorder=1)
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        axes.margins(0.15)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"{score['title']} of {result['examples']} test images, %")
    names = panels[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=2, frameon=False)
    with files.new_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the Pareto front of (cost, value) points, by ascending cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def must_be_png(path: Path) -> None:
    """Raises UsageError if the file's suffix is not .png."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"cannot draw to {path.name!r}", allowed="must be a .png file")
