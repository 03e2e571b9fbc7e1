"""Export of a run's network to other runtimes, with each artifact verified on real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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


@session.isolated()
def export(
    run: Run,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    *,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - frozen
    access: Access | None = None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
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
        One row per artifact, as in verify.json. Without verification, a row has only the format,
        the precision, the sizes and whether two exports are byte-identical. "layers" has the rows
        of explain.json.

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
    rows: list[dict[str, Any]] = []
    failed: list[CnnbenchError] = []
    unwritten: list[CnnbenchError] = []
    for form, precision in planned.files:
        request = replace(base, precision=precision)
        if precision in CALIBRATED:
            request = replace(request, calibration=images)
        if precision == "int8":
            request = replace(request, calibration_method=options.calibration_method)
        try:
            row = write(source, form, request, options)
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
