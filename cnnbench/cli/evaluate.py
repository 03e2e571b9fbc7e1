"""`cnnbench eval`, `predict` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    say,
)
from cnnbench.errors import DataError, UsageError, VerificationError
from cnnbench.evaluation.tta import TTA

ROBUST_EXAMPLES = 1000


@click.command(name="eval")
@run_argument
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Split to evaluate on.",
)
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Weights to evaluate: the best by validation, or the last.",
)
@click.option(
    "--tta",
    type=click.Choice(list(TTA)),
    help="Test-time augmentation. [default: the recipe's evaluation.tta]",
)
@click.option("--robust", is_flag=True, help="Also measure 15 corruptions at 5 severities.")
@click.option(
    "--robust-examples",
    type=click.IntRange(1),
    help=f"Maximum number of images for --robust. [default: {ROBUST_EXAMPLES}]",
)
@click.option(
    "--require-target", is_flag=True, help="Exit with 5 if the recipe's target is missed."
)
@click.option(
    "--artifact",
    type=FilePath(),
    help="Evaluate this exported artifact instead; RUN defaults to the run that contains it.",
)
@click.option(
    "--trust-model",
    is_flag=True,
    help="Open an artifact that cnnbench did not write; it can run any code.",
)
@data_dir
@data_path
@as_json
def evaluate(
    run: Path | None,
    split: str,
    weights: str,
    tta: str | None,
    robust: bool,
    robust_examples: int | None,
    require_target: bool,
    artifact: Path | None,
    trust_model: bool,
    data_dir: Path | None,
    data_path: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a RUN: accuracy, calibration, robustness, speed and size.

    The default RUN is the newest finished one.
    """
    if robust_examples and not robust:
        raise click.UsageError("--robust-examples requires --robust.")
    if require_target and split != "test":
        raise click.UsageError("--require-target requires --split test.")
    if artifact and (tta or robust or weights != "best"):
        raise click.UsageError("--artifact cannot be used with --tta, --robust or --weights.")
    if trust_model and not artifact:
        raise click.UsageError("--trust-model requires --artifact.")
    from cnnbench.runs.find import run_around

    opened = chosen_run(run) if run or not artifact else run_around(artifact)
    task = opened.recipe.task
    if require_target and opened.recipe.target is None:
        raise UsageError(
            "--require-target, but the recipe has no target",
            where=str(opened.path),
            allowed=f"must have target.{task.score.key}",
        )
    from cnnbench.evaluation.artifact import evaluate_artifact
    from cnnbench.evaluation.evaluate import evaluate as measure
    from cnnbench.report import tables

    access = access_to(data_dir, data_path)
    if artifact:
        result = evaluate_artifact(
            opened, artifact, split=split, trust=trust_model, access=access, tell=say
        )
    else:
        corrupted = (robust_examples or ROBUST_EXAMPLES) if robust else None
        if corrupted:
            say(f"robustness: up to {corrupted} images with 75 corruptions each; takes a while")
        result = measure(
            opened,
            split=split,
            weights=weights,
            tta=tta,
            robust_examples=corrupted,
            access=access,
            tell=say,
        )
    answer(result, as_json, lambda found: tables.evaluation(found, task))
    target = result["target"]
    if require_target and target is not None and not target["reached"]:
        raise VerificationError(
            f"target {task.score.title} {task.score.of(target)} {tables.verdict(target)}",
            where=str(opened.path),
        )


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FilePath())
@click.option(
    "--plot",
    type=FilePath(),
    metavar="FILE.png",
    help="Plot accuracy against size and latency.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Maximum number of test images.",
)
@data_dir
@data_path
@as_json
def compare(
    runs: Sequence[Path],
    plot: Path | None,
    examples: int,
    data_dir: Path | None,
    data_path: Path | None,
    as_json: bool,
) -> None:
    """Compare the accuracy, size and speed of RUNS, exported to TFLite.

    The folder of a multi-stage recipe compares all of its stages.
    """
    from cnnbench.evaluation.compare import compare as measure
    from cnnbench.report import tables

    if plot is not None and plot.suffix != ".png":
        raise click.UsageError("--plot must be a .png file.")
    result = measure(runs, examples=examples, access=access_to(data_dir, data_path))
    answer(result, as_json, tables.comparison)
    if plot is not None:
        from cnnbench.report import plots

        plots.pareto(result, plot)


@click.command()
@click.argument("run", type=FilePath())
@click.argument("images", nargs=-1, required=True, type=FilePath())
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of classes to show for each image.",
)
@data_dir
@data_path
@as_json
def predict(
    run: Path,
    images: Sequence[Path],
    top: int,
    data_dir: Path | None,
    data_path: Path | None,
    as_json: bool,
) -> None:
    """Predict the classes of image files with the network of a RUN.

    A file that cannot be read costs its own answer; the exit code is then 3. No data set is needed:
    --data-dir and --data-path are taken as by eval, and have no effect.
    """
    opened = chosen_run(run)
    from cnnbench.evaluation.predict import predict as predict_files
    from cnnbench.report import tables

    rows = predict_files(opened, images, top=top)
    task = opened.recipe.task
    if as_json or any("error" not in row for row in rows):
        answer({"images": rows}, as_json, lambda found: tables.predictions(rows, task))
    bad = [row["error"] for row in rows if "error" in row]
    for error in bad[:-1]:
        say(f"error: {error}")
    if bad:
        raise DataError(bad[-1])
