"""Evaluation of an artifact in its own runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from cnnbench.backend import session
from cnnbench.data.open import Access
from cnnbench.data.reader import evaluation_batches
from cnnbench.data.splits import evaluation_examples
from cnnbench.errors import UsageError, VerificationError
from cnnbench.evaluation.evaluate import Evaluation, summary
from cnnbench.exports.formats.format import files_of, format_of, require
from cnnbench.exports.process import Artifact
from cnnbench.runs import network
from cnnbench.runs.network import Network
from cnnbench.runs.run import Run
from cnnbench.system import files
from cnnbench.system.processes import WorkerError


@session.isolated()
def evaluate_artifact(
    run: Run,
    artifact: Path,
    *,
    split: str = "test",
    trust: bool = False,
    access: Access | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Evaluates an artifact on a run's data, in a separate process.

    All metrics are computed from the artifact's own outputs. Writes eval.json next to it.

    Args:
        run: the run whose data, recipe and preprocessing to use.
        artifact: a file or a folder.
        split: "test" or "validation".
        trust: whether to open an artifact that cnnbench did not write into this run.
        access: where data sets are stored; None: where the training found them.
        tell: called with a line if the file may not be written; the result is returned all the
            same.

    Returns:
        The content of eval.json.

    Raises:
        UsageError: the path is not an artifact, the artifact cannot be run, cnnbench did not write
            it, or the run's weights have changed since it was exported.
        VerificationError: one of its outputs is not finite.
        RunError, DataError: as for `evaluate`.
    """
    form, file = format_of(artifact)
    require(form)
    if not trust:
        must_be_written_by(run, file)
    net = network.restore(run)
    dataset = network.open_data(run, access or Access())
    examples, skipped = evaluation_examples(dataset, run.recipe.data, split)
    batch_size = min(run.recipe.data.batch_size, len(examples))
    rows, truth = [], []
    try:
        with Artifact(form, file) as opened:
            speed: dict[str, Any] = {}
            for images, targets, count in evaluation_batches(
                examples, run.recipe.data, net.pixel_shape[:2], batch_size
            ):
                inputs = images[:count]
                if not opened.takes_pixels:
                    inputs = net.preprocess(inputs).numpy()
                speed = speed or opened.speed(inputs)
                outputs = _read(opened.outputs(inputs), net, count, artifact)
                rows.append(net.task.measures_of_file(run.recipe.loss, outputs, targets[:count]))
                truth.append(targets[:count])
            fastest = opened.best_batch(inputs) or {"images_per_s": None, "batch_size": None}
    except WorkerError as error:
        raise UsageError(f"cannot be run: {error}", where=str(artifact)) from None
    result: dict[str, Any] = {
        "recipe": run.recipe.name,
        "run": str(run.path),
        "artifact": str(artifact),
        "format": form,
        "split": split,
        "skipped_images": list(skipped),
        "tta": "none",
    }
    measures = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    result |= summary(run, net, measures, np.concatenate(truth), split) | speed
    result["throughput_images_per_s"] = fastest["images_per_s"]
    result["batch_size"] = fastest["batch_size"]
    folder = file if file.is_dir() else file.parent
    kind = "" if split == "test" else f"-{split}"
    if folder.resolve() == run.path.resolve():  # the run has its own eval.json there
        kind = f"-{file.name}{kind}"
    if problem := files.keep_json(folder / f"eval{kind}.json", result):
        tell(problem)
    return cast("Evaluation", result)  # the task's part has whatever keys the task gives it


def _read(
    outputs: dict[str, np.ndarray], net: Network, count: int, artifact: Path
) -> dict[str, np.ndarray]:
    """Returns an artifact's outputs in the form that the task uses.

    Raises:
        UsageError: the task cannot read the outputs, or their shape is not the network's.
        VerificationError: an output is not finite.
    """
    try:
        read = net.task.read(outputs)
    except ValueError as error:
        raise UsageError(f"cannot be run: {error}", where=str(artifact)) from None
    expected = (count, *net.model.output_shape[1:])
    if read[net.task.primary].shape != expected:
        raise UsageError(
            f"its outputs have shape {read[net.task.primary].shape} for {count} images",
            where=str(artifact),
            allowed=f"must be {expected}, as of the run's network",
        )
    if not np.isfinite(read[net.task.primary]).all():
        raise VerificationError("its outputs have NaN or infinity", where=str(artifact))
    return read


def must_be_written_by(run: Run, artifact: Path) -> None:
    """Checks that an artifact is in a run and unchanged since `export` wrote it.

    Args:
        run: the run.
        artifact: the path that its runtime opens.

    Raises:
        UsageError: it is not in the run's folder, the SHA-256 of its files differ from those in its
            metadata.json, or the run's weights have changed since.
    """
    folder = artifact if artifact.is_dir() else artifact.parent
    try:
        about = dict(json.loads((folder / "metadata.json").read_text()))
        written = dict(about["files"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        about, written = {}, {}
    is_inside = folder.resolve().is_relative_to(run.path.resolve())
    if not (is_inside and written) or written != {
        str(path.relative_to(folder)): files.sha256(path) for path in files_of(folder)
    }:
        raise UsageError(
            "cnnbench did not write this artifact into the run, and opening it runs the program in "
            "it",
            where=str(artifact),
            allowed="pass --trust-model if you trust its source",
        )
    if about.get("weights_sha256") != run.weights_sha256():
        raise UsageError(
            "the run's weights have changed since this artifact was exported",
            where=str(artifact),
            allowed="run cnnbench export again",
        )
