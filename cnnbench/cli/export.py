"""`cnnbench export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cnnbench.cli.options import access_to, answer, as_json, chosen_run, data_dir, run_argument
from cnnbench.exports.options import CALIBRATION_METHODS, EXAMPLES, PRECISIONS, ExportOptions


class _ExportCommand(click.Command):
    """A command with an option for each format, found when the command is used."""

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
    help="Of every format named; may be given several times. [default: the network's own]",
)
@click.option("--no-preprocessing", is_flag=True, help="Files take normalised images.")
@click.option("--verify/--no-verify", default=True, help="Run each file and compare.")
@click.option(
    "--examples",
    type=click.IntRange(1),
    help=f"Test images to compare on. [default: {EXAMPLES}]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    help="Share of the images by which a file may be worse: float32 and float16 name another "
    "class, the others are right less often. [default: 0.001, 0.005; 0.01]",
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
    help="How int8 ranges are computed from them.",
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
    precisions: Sequence[str],
    no_preprocessing: bool,
    data_dir: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Write a RUN's best weights in other formats, each file verified on real images.

    By default, as SavedModel and TFLite.
    """
    from cnnbench.exports.formats.format import known_formats

    formats = [name for name in known_formats() if given.pop(name)]
    options = ExportOptions(preprocessing=not no_preprocessing, **given)
    if not options.verify:
        for name in ("tolerance", "examples"):
            if given[name] is not None:
                raise click.UsageError(f"--{name} is for --verify.")
    opened = chosen_run(run)
    from cnnbench.exports.export import export as write
    from cnnbench.report import tables

    rows: list[dict[str, Any]] = []
    access = access_to(data_dir)
    try:
        write(opened, formats, precisions, options=options, access=access, on_row=rows.append)
    finally:  # of what failed too, and beside it what did not
        if rows:
            result = {"run": str(opened.path), "rows": rows}
            answer(result, as_json, lambda found: tables.exports(found, opened.recipe.task))
