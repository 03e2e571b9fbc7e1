"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cnnbench.errors import printable

# Classes beyond so many are in eval.json alone.
MAX_CLASSES = 20
# Layers beyond so many are in explain.json alone.
MAX_LAYERS = 20


def evaluation(result: dict[str, Any]) -> Any:
    """What `eval` found."""
    latency = result["latency_ms"]
    rows = [
        ("run", result["run"]),
        *([("artifact", result["artifact"])] if "artifact" in result else []),
        ("split", f"{result['split']}, {result['examples']} examples"),
        ("top-1", f"{result['top1']:.4f}{_augmented(result)}"),
        ("top-5", f"{result['top5']:.4f}"),
        ("loss", f"{result['loss']:.4f}"),
        ("negative log-likelihood", f"{result['nll']:.4f}"),
        ("calibration error", f"{result['ece']:.4f}"),
        ("parameters", f"{result['params']:,}"),
        ("MACs an image", f"{result['macs']:,}"),
        ("throughput", _throughput(result)),
        ("latency, 1 image", f"p50 {latency['p50']:.2f} ms, p95 {latency['p95']:.2f} ms"),
        ("peak memory", f"{result['peak_memory_mb']:.0f} MB"),
    ]
    if result["skipped_images"]:
        rows.append(("skipped images", ", ".join(result["skipped_images"])))
    if target := result["target"]:
        found = f"{target['top1']:.4f}: {verdict(target)}"
        rows.append(("target", f"{found}; {target['source']}"))
    parts = [facts(dict(rows))]
    if robust := result.get("robust"):
        parts += _robustness(robust)
    if len(result["per_class"]) <= MAX_CLASSES:
        parts.append(
            _table(
                ("class", "examples", "top-1"),
                [
                    (row["class"], row["examples"], _share(row["top1"]))
                    for row in result["per_class"]
                ],
            )
        )
        names = [f"{i} {row['class']}" for i, row in enumerate(result["per_class"])]
        parts.append(
            _table(
                ("true \\ predicted", *map(str, range(len(names)))),
                [(name, *row) for name, row in zip(names, result["confusion"], strict=True)],
            )
        )
    return Group(*parts)


def verdict(target: dict[str, Any]) -> str:
    """Whether the target of `eval` was reached, and by how much it was not or more than that."""
    difference = target["difference"]
    if not target["reached"]:
        return f"missed by {-difference:.4f}"
    if difference < 0:
        return f"reached, {-difference:.4f} below, within {target['tolerance']:.4f}"
    return f"reached, {difference:.4f} above"


def exports(result: dict[str, Any]) -> Any:
    """What `export` wrote and how it was proven."""
    columns = (
        "format",
        "precision",
        "size",
        "top-1",
        "Keras top-1",
        "agreement",
        "logit diff",
        "p50",
        "images/s",
        "memory",
    )
    rows, paths = [], []
    parts: list[Any] = []
    for row in result["rows"]:
        cells = [row["format"], row["precision"]]
        if "path" in row:
            paths.append((*cells, row["path"]))
            cells.append(_megabytes(row["size_bytes"]))
        else:
            cells.append("")
        if "agreement" in row:
            difference = row["max_abs_logit_diff"]
            cells += [
                f"{row['top1']:.4f}",
                f"{row['reference_top1']:.4f}",
                f"{row['agreement']:.2%} of {row['examples']}",
                "NaN" if difference is None else f"{difference:.2g}",
                f"{row['latency_ms']['p50']:.2f} ms",
                f"{row['best_batch']['images_per_s']:.0f}" if row.get("best_batch") else "",
                f"{row['peak_memory_mb']:.0f} MB",
            ]
        else:
            cells += ["failed" if "error" in row else "not verified"] + [""] * 6
        rows.append(cells)
        if "error" in row:
            parts.append(Text(f"{row['format']} {row['precision']}: {row['error']}"))
        if layers := row.get("layers"):
            parts.append(_layers(layers))
    return Group(_table(columns, rows), *parts, _table(("format", "precision", "where"), paths))


def _layers(layers: Sequence[dict[str, Any]]) -> Table:
    """What layers lose by int8, the worst of them."""
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


def comparison(result: dict[str, Any]) -> Any:
    """What networks cost and reach, a line each."""
    columns = (
        "network", "precision", "top-1", "params", "MACs", "zeros", "size", "zip", "p50", "best",
    )  # fmt: skip
    rows = [
        (
            row["name"],
            row["precision"],
            f"{row['top1']:.4f}",
            f"{row['params']:,}",
            f"{row['macs']:,}",
            f"{row['sparsity']:.1%}",
            _megabytes(row["size_bytes"]),
            _megabytes(row["zip_bytes"]),
            f"{row['latency_ms']['p50']:.2f} ms",
            "*" if row["is_best"] else "",
        )
        for row in result["rows"]
    ]
    note = f"top-1 of TFLite files on at most {result['examples']} test images"
    return Group(_table(columns, rows), note)


def predictions(result: dict[str, Any]) -> Any:
    """The likeliest classes of each image."""
    return _table(
        ("file", "class", "probability"),
        [
            (row["file"] if i == 0 else "", likely["class"], f"{likely['probability']:.4f}")
            for row in result["images"]
            for i, likely in enumerate(row["top"])
        ],
    )


def model(result: dict[str, Any]) -> Any:
    """A network by stage, and the recipe around it if there is one."""
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
            f"lr {rate['lr']:g} at batch {rate['batch_size']}, that is "
            f"{rate['lr_per_256_images']:.4g} per 256 images (Goyal et al. 2017)"
        )
    recipe = [Text(printable(result["recipe"]))] if "recipe" in result else []
    return Group(facts(about), stages, *recipe)


def parts(result: dict[str, Any]) -> Any:
    """Rows with the same keys, as `list` prints them."""
    (rows,) = result.values()
    if not rows:
        return "nothing"
    return _table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def benchmark(result: dict[str, Any]) -> Any:
    """What `bench` measured."""
    rows = result["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    titles = {
        "batch_size": "batch",
        "throughput_images_per_s": "images/s",
        "gflops_per_s": "GFLOP/s",
        "share_of_peak": "of peak",
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
    """Where the time of training steps goes."""
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
    """Names and what they are, a line each."""
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


def _throughput(result: dict[str, Any]) -> str:
    speed = result["throughput_images_per_s"]
    if speed is None:
        return "too few batches to tell"
    return f"{speed:.0f} images/s in batches of {result['batch_size']}"


def _augmented(result: dict[str, Any]) -> str:
    if result["tta"] == "none":
        return ""
    return f" with {result['tta']}, {result['top1_without_tta']:.4f} without"


def _robustness(robust: dict[str, Any]) -> list[Any]:
    rows = [
        (name.replace("_", " "), *(f"{top1:.4f}" for top1 in each), f"{sum(each) / len(each):.4f}")
        for name, each in robust["corruptions"].items()
    ]
    about = {
        "corrupted": f"the first {robust['examples']} examples, in 15 ways and 5 severities",
        "mean corruption accuracy": f"{robust['mean_corruption_accuracy']:.4f}",
        "mean corruption error": f"{robust['mean_corruption_error']:.4f}",
        "note": "; ".join(robust["notes"]),
    }
    return [_table(("top-1 by severity", *"12345", "mean"), rows), facts(about)]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
