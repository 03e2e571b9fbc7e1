"""`cnnbench export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cnnbench.cli.options import access_to, answer, as_json, chosen_run, data_dir, run_argument
from cnnbench.exports.options import CALIBRATION_METHODS, PRECISIONS


@click.command()
@run_argument
@click.option("--saved-model", is_flag=True, help="TensorFlow SavedModel: float32.")
@click.option("--keras", is_flag=True, help="Keras's own file: float32.")
@click.option("--tflite", is_flag=True, help="TFLite, in any precision.")
@click.option("--onnx", is_flag=True, help="ONNX: float32 or int8.")
@click.option("--openvino", is_flag=True, help="OpenVINO: float32.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Of every format named; may be given several times. [default: the network's own]",
)
@click.option("--no-preprocessing", is_flag=True, help="Artifacts take normalised images.")
@click.option("--verify/--no-verify", default=True, help="Run each artifact and compare.")
@click.option(
    "--examples",
    type=click.IntRange(1),
    help="Test images to compare on. [default: 1000]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    help="Share of images: float32 and float16 may name another class for so many, the others be "
    "right on so many fewer. [default: 0.001, 0.005; 0.01]",
)
@click.option(
    "--calibration-examples",
    type=int,
    help="Training images for int8 and int16x8. [default: 200]",
)
@click.option(
    "--calibration-method",
    type=click.Choice(CALIBRATION_METHODS),
    default="min_max",
    show_default=True,
    help="How int8 has its ranges of them.",
)
@click.option("--explain", is_flag=True, help="Tell what each layer of TFLite int8 loses.")
@click.option(
    "--keep-float",
    type=click.IntRange(0),
    default=0,
    metavar="K",
    help="Keep the K layers that lose most in float32.",
)
@data_dir
@as_json
def export(
    run: Path | None,
    saved_model: bool,
    keras: bool,
    tflite: bool,
    onnx: bool,
    openvino: bool,
    precisions: Sequence[str],
    no_preprocessing: bool,
    verify: bool,
    examples: int | None,
    tolerance: float | None,
    calibration_examples: int | None,
    calibration_method: str,
    explain: bool,
    keep_float: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Write a RUN's best weights as artifacts, proven on real images.

    By default, as SavedModel and TFLite.
    """
    flags = {
        "saved_model": saved_model,
        "keras": keras,
        "tflite": tflite,
        "onnx": onnx,
        "openvino": openvino,
    }
    if not verify:
        for option, given in (("--tolerance", tolerance), ("--examples", examples)):
            if given is not None:
                raise click.UsageError(f"{option} is for --verify.")
    opened = chosen_run(run)
    from cnnbench.exports.export import export as write
    from cnnbench.report import tables

    rows: list[dict[str, Any]] = []
    try:
        write(
            opened,
            [name for name, is_wanted in flags.items() if is_wanted],
            precisions,
            preprocessing=not no_preprocessing,
            verify=verify,
            examples=examples,
            tolerance=tolerance,
            calibration_examples=calibration_examples,
            calibration_method=calibration_method,
            explain=explain,
            keep_float=keep_float,
            access=access_to(data_dir),
            told=rows.append,
        )
    finally:  # of what failed too, and beside it what did not
        if rows:
            answer({"run": str(opened.path), "rows": rows}, as_json, tables.exports)
