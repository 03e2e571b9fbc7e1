"""Exports: a run's network as artifacts of other tools, each proven on real images."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from cnnbench.backend.lazy import quiet, tensorflow_errors
from cnnbench.data.open import Access
from cnnbench.errors import CnnbenchError, RunError, UsageError, VerificationError
from cnnbench.exports import calibrate
from cnnbench.exports.formats.format import (
    CALIBRATED,
    FORMATS,
    files_of,
    module_of,
)
from cnnbench.exports.formats.request import Request
from cnnbench.exports.plan import _check_int8, plan
from cnnbench.exports.verify import Reference
from cnnbench.runs import network
from cnnbench.runs.run import Run
from cnnbench.system import files
from cnnbench.system.environment import machine
from cnnbench.tasks.classification import refusal

EXAMPLES = 1000


def export(
    run: Run,
    formats: Sequence[str] = (),
    precisions: Sequence[str] = (),
    *,
    preprocessing: bool = True,
    verify: bool = True,
    examples: int | None = None,
    tolerance: float | None = None,
    calibration_examples: int | None = None,
    calibration_method: str = "min_max",
    explain: bool = False,
    keep_float: int = 0,
    access: Access | None = None,
    told: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Writes artifacts of a run's best weights, and proves each on images of the test split.

    An artifact lies in `folder_of(run, …)` with metadata.json and, verified, verify.json. One that
    fails lies in a folder named *.failed instead; the others are written and proven all the same.

    Args:
        run: a run with weights.
        formats: names in FORMATS, each of which is written in every precision; none:
            DEFAULT_FORMATS, each in those that it has.
        precisions: names in PRECISIONS; none: int8 for the TFLite file of a network that was
            trained for it, else float32.
        preprocessing: whether artifacts take uint8 pixels, or normalised images.
        verify: whether each artifact is run by its own run-time and compared with Keras.
        examples: how many test images to compare on, at the most; None: EXAMPLES.
        tolerance: a share, 0-1, of the images: of a float artifact how many may be named otherwise,
            of one with integers how much less may be right; None: what is usual for the precision.
        calibration_examples: how many training images give integer artifacts their ranges; None:
            calibration.EXAMPLES.
        calibration_method: one of CALIBRATION_METHODS, how int8 has its ranges of them.
        explain: whether explain.json tells what each layer of the TFLite int8 file loses.
        keep_float: how many of the layers that lose most stay in float32 there.
        access: where data sets lie; None: where the training found them.
        told: is given the row of each artifact when it is done, of one that failed too.

    Returns:
        A row an artifact, as verify.json has it; without verification only format, precision, size
        and whether its bytes are the same each time. "layers" has the rows of explain.json.

    Raises:
        UsageError: a format lacks a precision, a package or an operation, or an option fits none.
        VerificationError: an artifact differs from the network beyond tolerance.
        RunError: the run has no weights, they change meanwhile, or its folder cannot be written.
        DataError: the images are not there.
    """
    from cnnbench.models.layers.fast import plain  # imports Keras

    is_quantized = _is_quantized(run)
    wanted = plan(formats, precisions, quantized=is_quantized)
    if explain or keep_float:
        _check_int8("--explain and --keep-float are", ("tflite",), wanted, is_quantized)
    if calibration_method != "min_max":
        _check_int8("--calibration-method is", tuple(FORMATS), wanted, is_quantized)
    access = access or Access()
    is_calibrated = not is_quantized and any(form in CALIBRATED for _, form in wanted)
    if calibration_examples is not None and not is_calibrated:
        raise UsageError(
            "--calibration-examples is for int8 and int16x8 of a network that was not trained for "
            "them, which are not exported"
        )
    count = calibrate.EXAMPLES if calibration_examples is None else calibration_examples
    if is_calibrated:
        calibrate.check(count, calibration_method)
    weights_sha256 = run.weights_sha256()
    net = network.restore(run)
    if run.weights_sha256() != weights_sha256:
        raise RunError(
            "its weights were replaced while they were read: it is being trained",
            where=str(run.path),
            allowed="another try",
        )
    images = calibrate.images(run, count, access) if is_calibrated else None
    reference = Reference(run, net, examples or EXAMPLES, access) if verify else None
    request = Request(replace(net, model=plain(net.model)), preprocessing=preprocessing)
    rows: list[dict[str, Any]] = []
    failed: list[CnnbenchError] = []
    unwritten: list[CnnbenchError] = []
    for form, precision in wanted:
        wish = replace(request, precision=precision)
        if precision in CALIBRATED:
            wish = replace(wish, calibration=images)
        if precision == "int8":
            wish = replace(wish, calibration_method=calibration_method)
        explained = (explain, keep_float) if (form, precision) == ("tflite", "int8") else None
        try:
            row = _export(run, form, wish, weights_sha256, reference, tolerance, explained)
        except (UsageError, VerificationError) as error:
            row = {"format": form, "precision": precision, "error": str(error), "passed": False}
            unwritten.append(error)
        else:
            if not row.get("passed", True):
                remedy = _remedy(wish, form, keep_float)
                failed.append(refusal(row, Path(row["path"]), remedy))
        rows.append(row)
        told(row)
    if errors := failed + unwritten:
        raise errors[0]
    return rows


def _remedy(request: Request, form: str, keep_float: int) -> str | None:
    """Returns the options that may spare an int8 file what it lost."""
    options = []
    if request.precision == "int8" and request.calibration is not None:
        if request.calibration_method == "min_max":
            options.append("--calibration-method average_min_max")
        if form == "tflite" and not keep_float:
            options.append("--explain --keep-float K")
    return " or ".join(options) or None


def _is_quantized(run: Run) -> bool:
    return any(record["stage"]["name"] == "qat" for record in run.architecture())


def folder_of(
    run: Run, form: str, precision: str = "float32", *, preprocessing: bool = True
) -> Path:
    """Returns where a run keeps an artifact."""
    if (form, precision, preprocessing) == ("saved_model", "float32", True):
        return run.path / "saved_model"
    parts = [form, *[precision] * (precision != "float32"), *["normalised"] * (not preprocessing)]
    return run.path / "exports" / "-".join(parts)


def _export(
    run: Run,
    form: str,
    request: Request,
    weights_sha256: str,
    reference: Reference | None,
    tolerance: float | None,
    explained: tuple[bool, int] | None,
) -> dict[str, Any]:
    """Writes one artifact, measures it, and puts it in its place; returns its row."""
    folder = folder_of(run, form, request.precision, preprocessing=request.preprocessing)
    failed = folder.with_name(f"{folder.name}.failed")
    about = FORMATS[form]
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        artifact = Path(scratch) / "artifact"
        layers: list[dict[str, Any]] = []
        with files.storage_errors(artifact), tensorflow_errors(artifact), quiet():
            if explained and any(explained):
                request, layers = _explained(request, explained[1])
            module_of(form).write(request, artifact)
        row: dict[str, Any] = {
            "format": form,
            "precision": request.precision,
            "preprocessing": request.preprocessing,
            "size_bytes": sum(path.stat().st_size for path in files_of(artifact)),
            "zip_bytes": _zipped(artifact),
            "deterministic": about.varies is None,
        }
        if about.varies:
            row["reason"] = about.varies
        if request.calibration is not None:
            images, method = len(request.calibration), request.calibration_method
            row["calibration"] = {"images": images, "method": method}
        files.write_json(
            artifact / "metadata.json",
            _metadata(run, form, request, artifact, layers) | {"weights_sha256": weights_sha256},
        )
        if layers:
            files.write_json(artifact / "explain.json", {"layers": layers})
        if reference is not None:
            row |= reference.verify(artifact, request.precision, tolerance)
            files.write_json(artifact / "verify.json", {"machine": machine(), "rows": [row]})
        place, other = (folder, failed) if row.get("passed", True) else (failed, folder)
        files.recover(place)
        with files.new_folder(place) as partial:
            shutil.copytree(artifact, partial, dirs_exist_ok=True)
        shutil.rmtree(other, ignore_errors=True)
    return row | {"path": str(place)} | ({"layers": layers} if layers else {})


def _explained(request: Request, keep_float: int) -> tuple[Request, list[dict[str, Any]]]:
    """Measures what each layer loses by int8, and asks that the worst ones be kept in float32.

    Raises:
        UsageError: there are not so many layers.
    """
    from cnnbench.exports.explain import layer_errors  # a debugger that few need

    errors = layer_errors(request)
    if keep_float > len(errors):
        raise UsageError(
            f"--keep-float {keep_float}, of {len(errors)} layers", allowed=f"0 to {len(errors)}"
        )
    kept = tuple(error.tensor for error in errors[:keep_float])
    layers = [asdict(error) | {"kept_float": error.tensor in kept} for error in errors]
    return replace(request, keep_float=kept), layers


def _metadata(
    run: Run, form: str, request: Request, artifact: Path, layers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns what a user of an artifact has to know, and what tells that it is cnnbench's own."""
    net, (height, width, channels) = request.net, request.input_shape
    writers = ("cnnbench", "tensorflow", "keras", *FORMATS[form].packages)
    packed = metadata.packages_distributions()
    return {
        "format": form,
        "precision": request.precision,
        "recipe": run.recipe.name,
        "recipe_sha256": files.sha256(run.path / "recipe.yaml"),
        "classes": list(net.classes),
        "input": {"height": height, "width": width, "channels": channels}
        | _input_type(form, request, artifact),
        "preprocessing": "inside: the artifact takes pixels"
        if request.preprocessing
        else "outside: the artifact takes (value / 255 in `color` - mean) / std",
        "color": net.preprocess.color,
        "mean": list(net.preprocess.mean),
        "std": list(net.preprocess.std),
        "float_layers": [row["layer"] for row in layers if row["kept_float"]],
        # A package may come of a distribution of another name, such as onnxruntime-gpu.
        "versions": {name: metadata.version(packed.get(name, [name])[0]) for name in writers},
        "files": {str(p.relative_to(artifact)): files.sha256(p) for p in files_of(artifact)},
    }


def _input_type(form: str, request: Request, artifact: Path) -> dict[str, Any]:
    if (form, request.precision) == ("tflite", "int8"):
        from cnnbench.exports.formats import tflite

        return tflite.input_type((artifact / FORMATS[form].file).read_bytes())
    return {"dtype": request.input_dtype}


def _zipped(folder: Path) -> int:
    """Returns the bytes of a zip of an artifact."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files_of(folder):
            archive.write(path, path.relative_to(folder))
    return packed.getbuffer().nbytes
