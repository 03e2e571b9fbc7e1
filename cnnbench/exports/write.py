"""Writing of one artifact, which is measured, verified and then put in place atomically."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from cnnbench.backend.lazy import quiet, tensorflow_errors
from cnnbench.errors import RunError, UsageError
from cnnbench.exports.formats.format import files_of, known_formats, module_of
from cnnbench.exports.formats.request import Request
from cnnbench.exports.options import ExportOptions
from cnnbench.exports.verify import Reference
from cnnbench.runs.run import Run
from cnnbench.system import files
from cnnbench.system.environment import machine


@dataclass(frozen=True)
class Source:
    """What artifacts are made from.

    run: the run whose network is exported, and whose folder artifacts are written to.
    weights_sha256: SHA-256 of the network's weights.
    reference: the outputs that artifacts are compared with; None: artifacts are not verified.
    """

    run: Run
    weights_sha256: str
    reference: Reference | None


def folder_of(
    run: Run,
    form: str,
    precision: str = "float32",
    *,
    preprocessing: bool = True,
    output: Path | None = None,
) -> Path:
    """Returns the folder of a run's artifact in a format and a precision; `output`: elsewhere."""
    if (form, precision, preprocessing) == ("saved_model", "float32", True):
        return (output or run.path) / "saved_model"
    parts = [form]
    if precision != "float32":
        parts.append(precision)
    if not preprocessing:
        parts.append("normalised")
    name = "-".join(parts)
    return output / name if output else run.path / "exports" / name


def write(source: Source, form: str, request: Request, options: ExportOptions) -> dict[str, Any]:
    """Writes one artifact, measures and verifies it, and moves it into the run.

    Returns:
        Its row of verify.json, with its "path", and the rows of explain.json as "layers".

    Raises:
        UsageError: the format lacks an operation of the network, or keep_float exceeds the number
            of layers.
        VerificationError: the converter did not do what was requested.
        RunError: the run's folder cannot be written.
    """
    run = source.run
    folder = folder_of(
        run,
        form,
        request.precision,
        preprocessing=request.preprocessing,
        output=options.output,
    )
    failed = folder.with_name(f"{folder.name}.failed")
    with tempfile.TemporaryDirectory(prefix="cnnbench-") as scratch:
        artifact = Path(scratch) / "artifact"
        layers: list[dict[str, Any]] = []
        with (
            files.storage_errors(artifact, "export"),
            tensorflow_errors(artifact, "export"),
            quiet(),
        ):
            is_int8 = (form, request.precision) == ("tflite", "int8")
            if is_int8 and (options.explain or options.keep_float):
                request, layers = _explained(request, options.keep_float)
            module_of(form).write(request, artifact)
        row = _described(form, request, artifact)
        about = _metadata(run, form, request, artifact, layers)
        about["weights_sha256"] = source.weights_sha256
        files.write_json(artifact / "metadata.json", about)
        if layers:
            files.write_json(artifact / "explain.json", {"layers": layers})
        if source.reference is not None:
            row |= source.reference.verify(artifact, request.precision, options.tolerance)
            files.write_json(artifact / "verify.json", {"machine": machine(), "rows": [row]})
        target, outdated = (folder, failed) if row.get("passed", True) else (failed, folder)
        files.recover(target)
        with _may_be_elsewhere(options), files.new_folder(target) as partial:
            files.copy_tree(artifact, partial)
        shutil.rmtree(outdated, ignore_errors=True)
    row["path"] = str(target)
    if layers:
        row["layers"] = layers
    return row


@contextlib.contextmanager
def _may_be_elsewhere(options: ExportOptions) -> Iterator[None]:
    """Adds to the error of a run that may not be written to that artifacts can be elsewhere."""
    try:
        yield
    except RunError as error:
        cause = error.__cause__
        if options.output or not isinstance(cause, OSError) or cause.errno not in files.READ_ONLY:
            raise
        hint = "--output writes to another folder"
        raise RunError(error.what, where=error.where, allowed=hint) from cause


def _described(form: str, request: Request, artifact: Path) -> dict[str, Any]:
    """Returns the part of an artifact's row that needs no verification."""
    about = known_formats()[form]
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
    return row


def _explained(request: Request, keep_float: int) -> tuple[Request, list[dict[str, Any]]]:
    """Measures the int8 error of each layer.

    Returns:
        The request with the worst layers to be kept in float32, and the rows of explain.json.

    Raises:
        UsageError: keep_float exceeds the number of layers.
    """
    from cnnbench.exports.explain import layer_errors  # rarely needed

    errors = layer_errors(request)
    if keep_float > len(errors):
        raise UsageError(
            f"--keep-float {keep_float}, but there are only {len(errors)} layers",
            allowed=f"must be in [0, {len(errors)}]",
        )
    kept = tuple(error.tensor for error in errors[:keep_float])
    layers = [asdict(error) | {"kept_float": error.tensor in kept} for error in errors]
    return replace(request, keep_float=kept), layers


def _metadata(
    run: Run, form: str, request: Request, artifact: Path, layers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns what users of an artifact need to know, and hashes that show cnnbench wrote it."""
    net, (height, width, channels) = request.net, request.input_shape
    writers = ("cnnbench", "tensorflow", "keras", *known_formats()[form].packages)
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
        # A package may come from a distribution with another name, such as onnxruntime-gpu.
        "versions": {name: metadata.version(packed.get(name, [name])[0]) for name in writers},
        "files": {str(p.relative_to(artifact)): files.sha256(p) for p in files_of(artifact)},
    }


def _input_type(form: str, request: Request, artifact: Path) -> dict[str, Any]:
    if (form, request.precision) == ("tflite", "int8"):
        from cnnbench.exports.formats import tflite

        return tflite.input_type((artifact / tflite.FORMAT.file).read_bytes())
    return {"dtype": request.input_dtype}


def _zipped(folder: Path) -> int:
    """Returns the size in bytes of a zip archive of an artifact's files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files_of(folder):
            archive.write(path, path.relative_to(folder))
    return packed.getbuffer().nbytes
