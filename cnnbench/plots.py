"""Pictures, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnnbench import files
from cnnbench.errors import UsageError


def stages(result: dict[str, Any], path: Path) -> None:
    """Draws a network as `show` describes it: its stages in order, and what each of them costs.

    Args:
        result: what `cnnbench.show` returns of a model or a recipe.
        path: of the PNG file.

    Raises:
        UsageError: the file's name does not end in .png.
        RunError: it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"cannot draw {path.name!r}", allowed="a file .png")
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
