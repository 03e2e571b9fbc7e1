"""Comparison of the accuracy, size and speed of networks, exported to TFLite."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from cnnbench.backend import session
from cnnbench.compression.prune import sparsity_of
from cnnbench.data.open import Access
from cnnbench.errors import UsageError
from cnnbench.exports.export import export
from cnnbench.exports.options import EXAMPLES, ExportOptions
from cnnbench.models.complexity import count_macs, count_params
from cnnbench.runs import find, network
from cnnbench.runs.run import STAGES, Run, open_run
from cnnbench.system.measure import Latency
from cnnbench.tasks.results import TaskScore


class ComparisonRow(TaskScore):
    """A network of a comparison, as a TFLite file, with the task's score of it.

    Attributes:
        name: name of its recipe.
        run: path of its run.
        precision: of the file.
        params: number of trainable parameters.
        macs: multiply-accumulates of one image.
        sparsity: share of zeros among the weights that pruning prunes, in [0, 1].
        size_bytes: size of the file.
        zip_bytes: its size in a zip archive.
        latency_ms: of one image.
        is_best: whether it is Pareto-optimal, that is, no other is at least as good, small (zipped)
            and fast, and better in one of these.
    """

    name: str
    run: str
    precision: str
    params: int
    macs: int
    sparsity: float
    size_bytes: int
    zip_bytes: int
    latency_ms: Latency
    is_best: bool


class ComparedScore(TypedDict):
    """The score that networks are compared by.

    Attributes:
        key: its key in each row.
        title: its name in printed tables.
    """

    key: str
    title: str


class Comparison(TypedDict):
    """Networks compared on the same images.

    Attributes:
        examples: the largest number of images of the test split.
        score: the task's score.
        rows: a row for each network, in the order given.
    """

    examples: int
    score: ComparedScore
    rows: list[ComparisonRow]


@session.isolated()
def compare(
    paths: Sequence[Path], *, examples: int = EXAMPLES, access: Access | None = None
) -> Comparison:
    """Exports the networks of runs to TFLite and measures each artifact in its own runtime.

    The artifact of a run that may only be read is not kept.

    Networks trained with quantization are exported in int8, others in float32.

    Args:
        paths: runs; the folder of a multi-stage recipe counts as the run that its first stage
            started from, if any, and the run of each stage.
        examples: maximum number of images of the test split to measure on.
        access: where data sets are stored; None: where the training found them.

    Returns:
        The score, and a row for each network.

    Raises:
        UsageError: a path is given twice, or there are no runs, or they have different tasks.
        VerificationError: an artifact differs from its network.
        RunError: a run is damaged or has no weights.

    Example:
        >>> import cnnbench, pathlib
        >>> result = cnnbench.compare([pathlib.Path("runs/digits")], examples=50)
        >>> [row["name"] for row in result["rows"]]
        ['lenet5_digits']
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a run is given twice")
    # Several may have started from the same run.
    runs = {run.path.resolve(): run for path in paths for run in _runs(path)}
    task, *others = {run.recipe.task for run in runs.values()}
    if others:
        names = sorted(each.name for each in (task, *others))
        raise UsageError(f"runs of {' and '.join(names)}", allowed="must be of the same task")
    rows = [_row(run, examples, access) for run in runs.values()]
    for row in rows:
        row["is_best"] = not any(_beats(other, row, task.score.key) for other in rows)
    score: ComparedScore = {"key": task.score.key, "title": task.score.title}
    # The key of the score is the task's.
    return {"examples": examples, "score": score, "rows": cast("list[ComparisonRow]", rows)}


def _runs(path: Path) -> list[Run]:
    if not (path / STAGES).is_file():
        return [open_run(path)]
    stages = find.stage_runs(path)
    first = stages[0].others("init").get("init") if stages else None
    return [*([first] if first else []), *stages]


def _row(run: Run, examples: int, access: Access | None) -> dict[str, Any]:
    model = network.restore(run).model
    with contextlib.ExitStack() as stack:
        output = None
        if not os.access(run.path, os.W_OK):
            output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cnnbench-")))
        options = ExportOptions(examples=examples, output=output)
        (artifact,) = export(run, ["tflite"], options=options, access=access)
    score = run.recipe.task.score
    sparsity, _ = sparsity_of(model)
    return {
        "name": run.recipe.name,
        "run": str(run.path),
        "precision": artifact["precision"],
        score.key: score.of(artifact),
        "params": count_params(model),
        "macs": count_macs(model),
        "sparsity": round(sparsity, 4),
        "size_bytes": artifact["size_bytes"],
        "zip_bytes": artifact["zip_bytes"],
        "latency_ms": artifact["latency_ms"],
    }


def _beats(one: Mapping[str, Any], other: Mapping[str, Any], score: str) -> bool:
    """Returns whether one row Pareto-dominates another: never worse, and better in something."""

    def costs(row: Mapping[str, Any]) -> tuple[float, ...]:
        return -row[score], row["zip_bytes"], row["latency_ms"]["p50"]

    pairs = list(zip(costs(one), costs(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
