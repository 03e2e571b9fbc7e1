"""Exports a run's network to other run-times, each file verified on real images."""

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
    """Writes files of a run's best weights, and verifies each on images of the test split.

    A file lies in `folder_of(run, …)` with metadata.json and, verified, verify.json. One that fails
    lies in a folder named *.failed instead; the others are written and verified all the same.

    Args:
        run: a run with weights.
        formats: names of formats, each of which is written in every precision; none: SavedModel and
            TFLite, each in those that it has.
        precisions: names in PRECISIONS; none: int8 for the TFLite file of a network that was
            trained for it, else float32.
        options: how they are written and verified.
        access: where data sets lie; None: where the training found them.
        on_row: called with the row of each file when it is done, of one that failed too.

    Returns:
        A row a file, as verify.json has it; without verification only format, precision, size and
        whether its bytes are the same each time. "layers" has the rows of explain.json.

    Raises:
        UsageError: a format lacks a precision, a package or an operation, or an option fits none.
        VerificationError: a file differs from the network beyond tolerance.
        RunError: the run has no weights, they change meanwhile, or its folder cannot be written.
        DataError: the images are not there.
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
    request = Request(replace(net, model=plain(net.model)), preprocessing=options.preprocessing)
    rows: list[dict[str, Any]] = []
    failed: list[CnnbenchError] = []
    unwritten: list[CnnbenchError] = []
    for form, precision in planned.files:
        wish = replace(request, precision=precision)
        if precision in CALIBRATED:
            wish = replace(wish, calibration=images)
        if precision == "int8":
            wish = replace(wish, calibration_method=options.calibration_method)
        try:
            row = write(source, form, wish, options)
        except (UsageError, VerificationError) as error:
            row = {"format": form, "precision": precision, "error": str(error), "passed": False}
            unwritten.append(error)
        else:
            if not row.get("passed", True):
                remedy = _remedy(wish, form, options.keep_float)
                failed.append(net.task.refusal(row, Path(row["path"]), remedy))
        rows.append(row)
        on_row(row)
    if errors := failed + unwritten:
        raise errors[0]
    return rows


def _restored(run: Run) -> tuple[Network, str]:
    """Returns a run's network and the SHA-256 of its weights.

    Raises:
        RunError: the run has no weights, or they were replaced meanwhile.
    """
    weights_sha256 = run.weights_sha256()
    net = network.restore(run)
    if run.weights_sha256() != weights_sha256:
        raise RunError(
            "its weights were replaced while they were read: it is being trained",
            where=str(run.path),
            allowed="another try",
        )
    return net, weights_sha256


def _remedy(request: Request, form: str, keep_float: int) -> str | None:
    """Returns the options that may reduce what an int8 file lost."""
    options = []
    if request.precision == "int8" and request.calibration is not None:
        if request.calibration_method == "min_max":
            options.append("--calibration-method average_min_max")
        if form == "tflite" and not keep_float:
            options.append("--explain --keep-float K")
    return " or ".join(options) or None
