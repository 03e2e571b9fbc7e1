"""Export of a run's network to other runtimes, with each artifact verified on real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Required, TypedDict, cast

from cnnbench.backend import session
from cnnbench.data.open import Access
from cnnbench.errors import CnnbenchError, RunError, UsageError, VerificationError
from cnnbench.exports import calibrate
from cnnbench.exports.formats.format import CALIBRATED
from cnnbench.exports.formats.request import Request
from cnnbench.exports.options import EXAMPLES, ExportOptions
from cnnbench.exports.plan import plan
from cnnbench.exports.verify import Reference
from cnnbench.exports.write import Source, write
from cnnbench.runs import network
from cnnbench.runs.network import Network
from cnnbench.runs.run import Run
from cnnbench.system.measure import Latency
from cnnbench.tasks.results import TaskAgreement


class Calibration(TypedDict):
    """How the ranges of integers were found.

    Attributes:
        images: number of training images.
        method: name in CALIBRATION_METHODS.
    """

    images: int
    method: str


class BestBatch(TypedDict):
    """The batch with the highest throughput.

    Attributes:
        batch_size: images in it.
        images_per_s: the throughput.
    """

    batch_size: int
    images_per_s: float


class LayerRow(TypedDict):
    """The int8 error of a layer, as in explain.json; see `LayerError` for the others.

    Attributes:
        kept_float: whether the file computes it in float32.
    """

    layer: str
    operation: str
    error: float
    relative_error: float
    tensor: str
    kept_float: bool


class ExportRow(TaskAgreement, total=False):
    """An artifact, as in verify.json; those that were verified have the keys of the run's task.

    Attributes:
        format: name of the format.
        precision: name in PRECISIONS.
        preprocessing: whether it takes pixels; like all below up to "path", of one that was
            written.
        size_bytes: size of its files.
        zip_bytes: their size in a zip archive.
        deterministic: whether two exports are byte-identical.
        reason: if not, why.
        calibration: how the ranges of integers were found, if there are any.
        path: its folder.
        layers: the int8 error of each layer, if it was asked for; not in verify.json.
        latency_ms: of one image; like all below, of one that was verified.
        peak_memory_mb: of the process that runs it, in MB of 2**20 bytes.
        tolerance: share of the images by which it may be worse, in [0, 1].
        passed: whether it agrees with the network; False also of one that was not written.
        best_batch: throughput, if it passed; None if the runtime fails on batches.
        error: why it was not written or does not run.
    """

    format: Required[str]
    precision: Required[str]
    preprocessing: bool
    size_bytes: int
    zip_bytes: int
    deterministic: bool
    reason: str
    calibration: Calibration
    path: str
    layers: list[LayerRow]
    latency_ms: Latency
    peak_memory_mb: float
    tolerance: float
    passed: bool
    best_batch: BestBatch | None
    error: str


@session.isolated()
def export(
    run: Run,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    *,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    access: Access | None = None,
    on_row: Callable[[ExportRow], None] = lambda row: None,
) -> list[ExportRow]:
    """Exports a run's best weights and verifies each artifact on images of the test split.

    Each artifact is written to `folder_of(run, …)` with metadata.json and, if it is verified,
    verify.json. One that fails verification is kept in a folder named *.failed instead; the others
    are still written and verified.

    Args:
        run: a run with weights.
        formats: names of formats, each written in every precision; if empty, SavedModel and TFLite,
            each in the precisions that it supports.
        precisions: names in PRECISIONS; if empty, int8 for TFLite if the network was trained with
            quantization, else float32.
        options: how artifacts are written and verified.
        access: where data sets are stored; None: where the training found them.
        on_row: called with the row of each artifact when it is done or has failed.

    Returns:
        One row per artifact, as in verify.json, in the order of the formats and precisions.

    Raises:
        UsageError: a format lacks a precision, a package or an operation, or an option applies to
            none of the artifacts.
        VerificationError: an artifact differs from the network by more than the tolerance.
        RunError: the run has no weights, they changed during the export, or its folder cannot be
            written.
        DataError: the images are missing.

    Example:
        >>> import cnnbench
        >>> run = cnnbench.open_run("runs/digits")
        >>> options = cnnbench.ExportOptions(examples=50)
        >>> (row,) = cnnbench.export(run, ["tflite"], options=options)
        >>> row["passed"], row["agreement"]
        (True, 1.0)
    """
    from cnnbench.models.layers.fast import plain  # imports Keras

    is_quantized = any(record["stage"]["name"] == "qat" for record in run.architecture())
    planned = plan(formats, precisions, options, quantized=is_quantized)
    access = access or Access()
    net, weights_sha256 = _restored(run)
    images = None
    if planned.calibration_examples:
        images = calibrate.images(run, planned.calibration_examples, access)
    reference = None
    if options.verify:
        reference = Reference(run, net, options.examples or EXAMPLES, access)
    source = Source(run, weights_sha256, reference)
    base = Request(replace(net, model=plain(net.model)), preprocessing=options.preprocessing)
    rows: list[ExportRow] = []
    failed: list[CnnbenchError] = []
    unwritten: list[CnnbenchError] = []
    for form, precision in planned.files:
        request = replace(base, precision=precision)
        if precision in CALIBRATED:
            request = replace(request, calibration=images)
        if precision == "int8":
            request = replace(request, calibration_method=options.calibration_method)
        try:
            # With whatever keys the task gives it.
            row = cast("ExportRow", write(source, form, request, options))
        except (UsageError, VerificationError) as error:
            row = {"format": form, "precision": precision, "error": str(error), "passed": False}
            unwritten.append(error)
        else:
            if not row.get("passed", True):
                remedy = _remedy(request, form, options.keep_float)
                failed.append(net.task.refusal(row, Path(row["path"]), remedy))
        rows.append(row)
        on_row(row)
    if errors := failed + unwritten:
        raise errors[0]
    return rows


def _restored(run: Run) -> tuple[Network, str]:
    """Returns a run's network and the SHA-256 of its weights.

    Raises:
        RunError: the run has no weights, or they changed while they were read.
    """
    weights_sha256 = run.weights_sha256()
    net = network.restore(run)
    if run.weights_sha256() != weights_sha256:
        raise RunError(
            "the weights changed while they were read, as the run is still being trained",
            where=str(run.path),
            allowed="try again",
        )
    return net, weights_sha256


def _remedy(request: Request, form: str, keep_float: int) -> str | None:
    """Returns the options that may reduce the error of an int8 artifact, or None."""
    options = []
    if request.precision == "int8" and request.calibration is not None:
        if request.calibration_method == "min_max":
            options.append("--calibration-method average_min_max")
        if form == "tflite" and not keep_float:
            options.append("--explain --keep-float K")
    return " or ".join(options) or None
