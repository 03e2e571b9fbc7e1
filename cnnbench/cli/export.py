"""`cnnbench export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cnnbench.cli.options import (
    FilePath,
    access_to,
    answer,
    as_json,
    chosen_run,
    data_dir,
    data_path,
    run_argument,
)
from cnnbench.exports.options import CALIBRATION_METHODS, EXAMPLES, PRECISIONS, ExportOptions


class _ExportCommand(click.Command):
    """A command with an option for each format; formats are looked up when the command is used."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from cnnbench.exports.formats.format import known_formats

        flags = [
            click.Option([f"--{name.replace('_', '-')}", name], is_flag=True, help=about.help)
            for name, about in known_formats().items()
        ]
        run, *others = super().get_params(ctx)
        return [run, *flags, *others]


@click.command(cls=_ExportCommand)
@run_argument
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Precision of every given format. Can be repeated. [default: float32; int8 for TFLite of "
    "networks trained with quantization]",
)
@click.option(
    "--no-preprocessing", is_flag=True, help="Artifacts take normalized images, not pixels."
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Run each artifact and compare it with the network.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    help=f"Maximum number of test images to verify on. [default: {EXAMPLES}]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    help="Largest share of test images on which float32 and float16 may predict another class, or "
    "by which accuracy may drop in other precisions. [default: 0.001 for float32, 0.005 for "
    "float16, 0.01 for others]",
)
@click.option(
    "--calibration-examples",
    type=int,
    help="Number of training images to calibrate int8 and int16x8 on. [default: 200]",
)
@click.option(
    "--calibration-method",
    type=click.Choice(CALIBRATION_METHODS),
    default="min_max",
    show_default=True,
    help="How int8 ranges are computed from the calibration images.",
)
@click.option("--explain", is_flag=True, help="Show the error of each layer of TFLite int8.")
@click.option(
    "--keep-float",
    type=click.IntRange(0),
    default=0,
    metavar="K",
    help="Keep the K layers of TFLite int8 with the largest error in float32.",
)
@click.option(
    "--output",
    type=FilePath(),
    metavar="FOLDER",
    help="Folder to write to, such as of a run that may only be read. [default: the run directory]",
)
@data_dir
@data_path
@as_json
def export(
    run: Path | None,
    precisions: Sequence[str],
    no_preprocessing: bool,
    data_dir: Path | None,
    data_path: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Export a RUN's best weights, and verify each artifact on test images.

    The default RUN is the newest finished one, and the default formats are SavedModel and TFLite.
    """
    from cnnbench.exports.formats.format import known_formats

    formats = [name for name in known_formats() if given.pop(name)]
    options = ExportOptions(preprocessing=not no_preprocessing, **given)
    if not options.verify:
        for name in ("tolerance", "examples"):
            if given[name] is not None:
                raise click.UsageError(f"--{name} cannot be used with --no-verify.")
    opened = chosen_run(run)
    from cnnbench.exports.export import ExportRow
    from cnnbench.exports.export import export as write
    from cnnbench.report import tables

    rows: list[ExportRow] = []
    access = access_to(data_dir, data_path)
    try:
        write(opened, formats, precisions, options=options, access=access, on_row=rows.append)
    finally:  # also if an artifact failed: the table shows it, and those that did not
        if rows:
            result = {"run": str(opened.path), "rows": rows}
            answer(result, as_json, lambda found: tables.exports(rows, opened.recipe.task))
