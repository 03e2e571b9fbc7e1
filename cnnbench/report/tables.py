"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cnnbench.errors import printable
from cnnbench.tasks.task import Task

if TYPE_CHECKING:
    from cnnbench.evaluation.compare import Comparison
    from cnnbench.evaluation.evaluate import Evaluation, Robustness, TargetReached
    from cnnbench.evaluation.predict import Prediction
    from cnnbench.exports.export import ExportRow, LayerRow

# Layers beyond this number are only in explain.json.
MAX_LAYERS = 20


def evaluation(result: Evaluation, task: Task) -> Any:
    """Returns the table of an evaluation."""
    latency = result["latency_ms"]
    rows = [
        ("run", result["run"]),
        *([("artifact", result["artifact"])] if "artifact" in result else []),
        ("split", f"{result['split']}, {result['examples']} examples"),
        *task.evaluation_rows(result),
        ("parameters", f"{result['params']:,}"),
        ("MACs an image", f"{result['macs']:,}"),
        ("throughput", _throughput(result)),
        ("latency, 1 image", f"p50 {latency['p50']:.2f} ms, p95 {latency['p95']:.2f} ms"),
        ("peak memory", f"{result['peak_memory_mb']:.0f} MB"),
    ]
    if result["skipped_images"]:
        rows.append(("skipped images", ", ".join(result["skipped_images"])))
    if target := result["target"]:
        found = f"{task.score.of(target):.4f}: {verdict(target)}"
        rows.append(("target", f"{found}; {target['source']}"))
    parts = [facts(dict(rows))]
    if robust := result.get("robust"):
        parts += _robustness(robust, task)
    parts += [_table(columns, lines) for columns, lines in task.evaluation_tables(result)]
    return Group(*parts)


def verdict(target: TargetReached) -> str:
    """Returns whether the target was reached, and the difference, as text."""
    difference = target["difference"]
    if not target["reached"]:
        return f"missed by {-difference:.4f}"
    if difference < 0:
        return f"reached, {-difference:.4f} below, within {target['tolerance']:.4f}"
    return f"reached, {difference:.4f} above"


def exports(rows: Sequence[ExportRow], task: Task) -> Any:
    """Returns the tables of an export: artifacts, errors, layers, and paths."""
    lines: list[dict[str, str]] = []
    paths: list[tuple[str, str, str]] = []
    parts: list[Any] = []
    unverified: list[int] = []
    for row in rows:
        name = [("format", row["format"]), ("precision", row["precision"])]
        cells = [*name, ("size", _megabytes(row["size_bytes"]) if "path" in row else "")]
        if "path" in row:
            paths.append((row["format"], row["precision"], row["path"]))
        if "latency_ms" in row:
            best = row.get("best_batch")
            cells += task.verification_cells(row)
            cells += [
                ("p50", f"{row['latency_ms']['p50']:.2f} ms"),
                ("images/s", f"{best['images_per_s']:.0f}" if best else ""),
                ("memory", f"{row['peak_memory_mb']:.0f} MB"),
            ]
        else:
            unverified.append(len(lines))
        lines.append(dict(cells))
        if "error" in row:
            parts.append(Text(f"{row['format']} {row['precision']}: {row['error']}"))
        if layers := row.get("layers"):
            parts.append(_layers(layers))
    columns = list(dict.fromkeys(title for line in lines for title in line))
    # Beside the size, in a column of the verified rows if there are any.
    beside = columns[3] if len(columns) > 3 else "verification"
    for i in unverified:
        lines[i][beside] = "failed" if "error" in rows[i] else "not verified"
    columns = list(dict.fromkeys([*columns, *(title for line in lines for title in line)]))
    cells_of = [[line.get(title, "") for title in columns] for line in lines]
    where = _table(("format", "precision", "where"), paths)
    return Group(_table(columns, cells_of), *parts, where)


def _layers(layers: Sequence[LayerRow]) -> Table:
    """Returns the table of the layers with the largest int8 error."""
    rows = [
        (
            row["layer"],
            row["operation"],
            f"{row['relative_error']:.2%}",
            "yes" if row["kept_float"] else "",
        )
        for row in layers[:MAX_LAYERS]
    ]
    return _table(("layer", "operation", "int8 error", "kept in float32"), rows)


def comparison(result: Comparison) -> Any:
    """Returns the table of a comparison, a row per network."""
    score = result["score"]
    scored: Sequence[Mapping[str, Any]] = result["rows"]  # by the task's key
    columns = (
        "network", "precision", score["title"], "params", "MACs", "zeros", "size", "zip", "p50",
        "best",
    )  # fmt: skip
    rows = [
        (
            row["name"],
            row["precision"],
            f"{each[score['key']]:.4f}",
            f"{row['params']:,}",
            f"{row['macs']:,}",
            f"{row['sparsity']:.1%}",
            _megabytes(row["size_bytes"]),
            _megabytes(row["zip_bytes"]),
            f"{row['latency_ms']['p50']:.2f} ms",
            "*" if row["is_best"] else "",
        )
        for row, each in zip(result["rows"], scored, strict=True)
    ]
    note = f"{score['title']} of TFLite files on at most {result['examples']} test images"
    return Group(_table(columns, rows), note)


def predictions(rows: Sequence[Prediction], task: Task) -> Any:
    """Returns the table of predictions, of which there is at least one; errors are left out."""
    lines = [
        {"file": row["file"] if i == 0 else "", **dict(cells)}
        for row in rows
        if "error" not in row
        for i, cells in enumerate(task.prediction_cells(row))
    ]
    return _table(list(lines[0]), [list(line.values()) for line in lines])


def model(result: dict[str, Any]) -> Any:
    """Returns the description of a network by stage, and of its recipe if there is one."""
    stages = _table(
        ("stage", "output", "layers", "parameters", "MACs"),
        [
            (
                s["stage"],
                "x".join(map(str, s["output"])),
                s["layers"],
                f"{s['params']:,}",
                f"{s['macs']:,}",
            )
            for s in result["stages"]
        ],
    )
    about = dict(result["facts"])
    if rate := result.get("learning_rate"):
        about["learning rate"] = (
            f"lr {rate['lr']:g} at batch {rate['batch_size']}, i.e. "
            f"{rate['lr_per_256_images']:.4g} per 256 images (Goyal et al. 2017)"
        )
    recipe = [Text(printable(result["recipe"]))] if "recipe" in result else []
    return Group(facts(about), stages, *recipe)


def parts(result: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Returns the table of `list`; its rows have the same keys."""
    (rows,) = result.values()
    if not rows:
        return "nothing"
    return _table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def benchmark(result: dict[str, Any]) -> Any:
    """Returns the table of a benchmark."""
    rows = result["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    titles = {
        "batch_size": "batch",
        "throughput_images_per_s": "images/s",
        "gflops_per_s": "GFLOP/s",
        "share_of_peak": "share of peak",
        "stock_throughput_images_per_s": "stock images/s",
        "ratio_to_stock": "x stock",
        "seconds_to_first_step": "s to 1st step",
        "peak_memory_mb": "MB",
    }
    keys = [key for key in keys if key != "mode"]
    cells = [
        [titles.get(key, key.replace("_", " ")), *(_cell(row.get(key, "")) for row in rows)]
        for key in keys
    ]
    table = _table(None, cells)
    about = {
        "processor": f"{result['machine']['cpu']}, {result['machine']['cores']} cores",
        "matrix product": f"{result['peak_gflops_per_s']:.0f} GFLOP/s",
    }
    return Group(facts(about), table)


def profile(result: dict[str, Any]) -> Any:
    """Returns the table of a profile: the time of training steps by operation."""
    about = {
        "steps": result["steps"],
        "seconds": result["seconds"],
        "waiting for data": f"{result['waiting_for_data']:.1%}",
    }
    rows = [
        (row["operation"], f"{row['ms']:.1f}", f"{row['share']:.1%}")
        for row in result["operations"]
    ]
    return Group(facts(about), _table(("operation", "ms", "share"), rows))


def facts(result: dict[str, Any]) -> Any:
    """Returns a table of names and values, a row each."""
    return _table(None, [(key, _cell(value)) for key, value in result.items()])


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ("x" if all(isinstance(item, int) for item in value) else ", ").join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(columns: Sequence[str] | None, rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(box=box.SIMPLE, show_header=columns is not None, pad_edge=False)
    rows = [[escape(printable(str(cell))) for cell in row] for row in rows]
    for i in range(len(rows[0]) if rows else 0):
        numbers = i > 0 and all(row[i][:1].isdigit() for row in rows) and columns is not None
        table.add_column(
            columns[i] if columns else "", justify="right" if numbers else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table


def _throughput(result: Evaluation) -> str:
    speed = result["throughput_images_per_s"]
    if speed is None:
        return "unknown: too few batches"
    return f"{speed:.0f} images/s in batches of {result['batch_size']}"


def _robustness(robust: Robustness, task: Task) -> list[Any]:
    rows = [
        (
            name.replace("_", " "),
            *(f"{score:.4f}" for score in each),
            f"{sum(each) / len(each):.4f}",
        )
        for name, each in robust["corruptions"].items()
    ]
    about = {
        "corrupted": f"the first {robust['examples']} examples, 15 corruptions at 5 severities",
        "mean corruption accuracy": f"{robust['mean_corruption_accuracy']:.4f}",
        "mean corruption error": f"{robust['mean_corruption_error']:.4f}",
        "note": "; ".join(robust["notes"]),
    }
    return [_table((f"{task.score.title} by severity", *"12345", "mean"), rows), facts(about)]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
