"""The command line: thin commands over the modules that do the work.

TensorFlow, Keras and everything that needs them are imported inside the commands.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cnnbench.errors import (
    CnnbenchError,
    InterruptedRun,
    UsageError,
    VerificationError,
    printable,
)
from cnnbench.tta import TTA

if TYPE_CHECKING:
    from cnnbench.data.datasets import Access
    from cnnbench.recipe import Recipe
    from cnnbench.run import Run

# A signal that leaves nothing to resume; the shells' number for it.
INTERRUPTED = 130
ROBUST_EXAMPLES = 1000
PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")
CALIBRATION_METHODS = ("min_max", "average_min_max")
LISTS = (
    "models",
    "presets",
    "datasets",
    "augmentations",
    "optimizers",
    "schedules",
    "losses",
    "compressions",
    "recipes",
)

data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="TFDS_DATA_DIR",
    help="Where prepared data sets lie. [env: TFDS_DATA_DIR]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
run_argument = click.argument("run", required=False, type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cnnbench")
def cli() -> None:
    r"""Train, measure and ship convolutional networks from one YAML recipe.

    \b
    cnnbench train recipes/lenet5_digits.yaml
    cnnbench eval
    cnnbench export --tflite
    """


@cli.command()
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As train.epochs=3.")
@data_dir
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: a new one in runs/.")
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, or the newest.")
@click.option("--force", is_flag=True, help="Resume though versions of the code changed.")
@click.option("--smoke", is_flag=True, help="The same code, a few steps on a few images.")
@click.option("--no-tune", is_flag=True, help="Do not look for the fastest settings first.")
def train(
    recipe: Path | None,
    overrides: Sequence[str],
    data_dir: Path | None,
    run_dir: Path | None,
    resume: bool,
    force: bool,
    smoke: bool,
    no_tune: bool,
) -> None:
    """Train the network of a RECIPE; print the run directory on the last line of stdout."""
    from cnnbench import progress
    from cnnbench.recipe import load_recipe

    if recipe is None and not (resume and run_dir):
        raise click.UsageError("name a RECIPE, or a run to continue with --resume --run-dir.")
    if resume and (overrides or smoke):
        raise click.UsageError("--resume continues a run as it is, without --set or --smoke.")
    if force and not resume:
        raise click.UsageError("--force is for --resume.")
    checked = load_recipe(find_recipe(recipe), tuple(overrides)) if recipe else None
    access = _access(data_dir)
    if resume:
        from cnnbench import chain

        if checked is None:
            assert run_dir is not None  # refused above
            folder = run_dir
        else:
            folder = run_dir or chain.unfinished(checked)
            chain.must_match(folder, checked)
        with progress.shown() as listener:
            run = chain.resume(folder, access=access, listener=listener, force=force)
    else:
        assert checked is not None
        if run_dir is not None:
            from cnnbench.run import must_be_free

            must_be_free(run_dir)
        if smoke:
            from cnnbench.smoke import smoke as cut_down

            checked, note = cut_down(checked, access)
            _say(note)
        _download_weights(checked)
        from cnnbench.chain import train as train_run
        from cnnbench.tuning import choose

        choice = choose(checked, tune=not no_tune, tell=_say)
        for note in choice.notes:
            _say(note)
        with progress.shown() as listener:
            run = train_run(
                checked, access=access, run_dir=run_dir, listener=listener, choice=choice
            )
    from cnnbench.exports import export

    try:
        export(run, ["saved_model"], verify=False)
    except KeyboardInterrupt:
        _say(f"interrupted: {run.path} is trained; cnnbench export --saved-model writes the rest")
        sys.exit(INTERRUPTED)
    click.echo(run.path)


@cli.command(name="import")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As model.weights=FILE.")
@data_dir
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: a new one in runs/.")
def import_weights(
    recipe: Path, overrides: Sequence[str], data_dir: Path | None, run_dir: Path | None
) -> None:
    """Make a finished run of the published weights that a RECIPE starts from, without training."""
    from cnnbench.recipe import load_recipe

    checked = load_recipe(find_recipe(recipe), tuple(overrides))
    _download_weights(checked)
    from cnnbench.importing import import_weights as import_run

    click.echo(import_run(checked, access=_access(data_dir), run_dir=run_dir).path)


@cli.command(name="eval")
@run_argument
@click.option("--split", type=click.Choice(["test", "validation"]), default="test")
@click.option("--weights", type=click.Choice(["best", "last"]), default="best")
@click.option(
    "--tta",
    type=click.Choice(list(TTA)),
    help="Test-time augmentation. [default: the recipe's evaluation.tta]",
)
@click.option("--robust", is_flag=True, help="Also on corrupted images: 15 ways, 5 severities.")
@click.option(
    "--robust-examples",
    type=click.IntRange(1),
    help=f"To corrupt, at most. [default: {ROBUST_EXAMPLES}]",
)
@click.option("--require-target", is_flag=True, help="Exit with 5 if the target is missed.")
@click.option(
    "--artifact",
    type=click.Path(path_type=Path),
    help="Measure this export instead; RUN is by default the one it lies in.",
)
@click.option(
    "--trust-model",
    is_flag=True,
    help="Open an artifact that cnnbench did not write: it can run any code.",
)
@data_dir
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
    as_json: bool,
) -> None:
    """Measure a RUN on the test split: accuracy, calibration, robustness, speed, size."""
    if robust_examples and not robust:
        raise click.UsageError("--robust-examples is for --robust.")
    if require_target and split != "test":
        raise click.UsageError("--require-target is for --split test.")
    if artifact and (tta or robust or weights != "best"):
        raise click.UsageError("--tta, --robust and --weights are not for --artifact.")
    if trust_model and not artifact:
        raise click.UsageError("--trust-model is for --artifact.")
    opened = _run(run) if run or not artifact else _run_around(artifact)
    if require_target and opened.recipe.target is None:
        raise UsageError(
            "--require-target, but the recipe has no target",
            where=str(opened.path),
            allowed="a recipe with target.top1",
        )
    from cnnbench import evaluation, tables

    access = _access(data_dir)
    if artifact:
        result = evaluation.evaluate_artifact(
            opened, artifact, split=split, trust=trust_model, access=access
        )
    else:
        corrupted = (robust_examples or ROBUST_EXAMPLES) if robust else None
        if corrupted:
            _say(
                f"robustness: at most {corrupted} images, each corrupted in 75 ways; it takes long"
            )
        result = evaluation.evaluate(
            opened,
            split=split,
            weights=weights,
            tta=tta,
            robust_examples=corrupted,
            access=access,
        )
    _answer(result, as_json, tables.evaluation)
    if require_target and not result["target"]["reached"]:
        raise VerificationError(
            f"target top-1 {result['target']['top1']} {tables.verdict(result['target'])}",
            where=str(opened.path),
        )


@cli.command()
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
    opened = _run(run)
    from cnnbench import tables
    from cnnbench.exports import export as write

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
            access=_access(data_dir),
            told=rows.append,
        )
    finally:  # of what failed too, and beside it what did not
        if rows:
            _answer({"run": str(opened.path), "rows": rows}, as_json, tables.exports)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="Draw them all: a .png file.")
@click.option("--examples", type=click.IntRange(1), default=1000, help="Test images to compare on.")
@data_dir
@as_json
def compare(
    runs: Sequence[Path], plot: Path | None, examples: int, data_dir: Path | None, as_json: bool
) -> None:
    """Compare the networks of RUNS, or of all stages of one: accuracy, size and speed in TFLite."""
    from cnnbench import tables
    from cnnbench.comparison import compare as measure

    if plot is not None and plot.suffix != ".png":
        raise click.UsageError("--plot is for a .png file.")
    result = measure(runs, examples=examples, access=_access(data_dir))
    _answer(result, as_json, tables.comparison)
    if plot is not None:
        from cnnbench import plots

        plots.pareto(result, plot)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), default=5, help="Classes to name for each image.")
@as_json
def predict(run: Path, images: Sequence[Path], top: int, as_json: bool) -> None:
    """Name the classes of IMAGES by the network of a RUN."""
    opened = _run(run)
    from cnnbench import tables
    from cnnbench.prediction import predict as classify

    _answer({"images": classify(opened, images, top=top)}, as_json, tables.predictions)


@cli.command()
@click.argument("recipe_or_model")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As train.epochs=3.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the stages: a .png file.")
@click.option(
    "--augmented",
    type=click.Path(path_type=Path),
    help="Draw training images as the network of a recipe sees them: a .png file.",
)
@data_dir
@as_json
def show(
    recipe_or_model: str,
    overrides: Sequence[str],
    plot: Path | None,
    augmented: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show what a RECIPE or a MODEL is, without training: stages, parameters, MACs."""
    if augmented is not None:
        from cnnbench import plots
        from cnnbench.recipe import load_recipe

        recipe = load_recipe(find_recipe(Path(recipe_or_model)), tuple(overrides))
        plots.augmented(recipe, augmented, _access(data_dir))
    result = _describe(recipe_or_model, tuple(overrides))
    if plot is not None:
        from cnnbench import plots

        plots.stages(result, plot)
    from cnnbench import tables

    _answer(result, as_json, tables.model)


def _describe(recipe_or_model: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    from cnnbench.parts import MODELS
    from cnnbench.registry import did_you_mean
    from cnnbench.show import show_model, show_recipe

    if recipe_or_model in MODELS.names() and not overrides:
        return show_model(recipe_or_model)
    from cnnbench.recipe import load_recipe

    path = find_recipe(Path(recipe_or_model))
    if not path.exists():
        raise UsageError(
            f"{recipe_or_model!r} is neither a recipe nor a model",
            allowed=did_you_mean(recipe_or_model, MODELS.names()),
        )
    return show_recipe(load_recipe(path, overrides))


@cli.command(name="list")
@click.argument("what", type=click.Choice(LISTS))
@as_json
def list_parts(what: str, as_json: bool) -> None:
    """List what a recipe can name."""
    from cnnbench import show, tables

    rows = show.recipes(recipes_folder()) if what == "recipes" else show.parts(what)
    _answer({what: rows}, as_json, tables.parts)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from cnnbench.recipe import Recipe

    click.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@cli.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--mode", type=click.Choice(("train", "infer", "data")), default="train")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="As data.batch_size=64.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, help="Of each measurement.")
@click.option("--compare-stock", is_flag=True, help="In turn with the same network in Keras's fit.")
@click.option("--no-tune", is_flag=True, help="Do not look for the fastest settings first.")
@click.option("--profile", type=click.Path(path_type=Path), help="Trace a few steps: a folder.")
@data_dir
@as_json
def bench(
    recipes: Sequence[Path],
    mode: Literal["train", "infer", "data"],
    overrides: Sequence[str],
    rounds: int,
    compare_stock: bool,
    no_tune: bool,
    profile: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast RECIPES train, their networks answer, or their images are read."""
    from cnnbench import benchmark, tables
    from cnnbench.recipe import load_recipe

    if compare_stock and mode != "train":
        raise click.UsageError("--compare-stock is for --mode train.")
    checked = [load_recipe(find_recipe(recipe), tuple(overrides)) for recipe in recipes]
    if profile is not None:
        if len(checked) > 1 or mode != "train":
            raise click.UsageError("--profile is for the training of one recipe.")
        result = benchmark.profile(checked[0], profile, _access(data_dir))
        _answer(result, as_json, tables.profile)
        return
    result = benchmark.bench(
        checked,
        mode,
        rounds=rounds,
        tune=not no_tune,
        compare_stock=compare_stock,
        access=_access(data_dir),
    )
    _answer(result, as_json, tables.benchmark)


@cli.command()
@as_json
def doctor(as_json: bool) -> None:
    """Tell what this machine has: versions, processor, devices, data sets."""
    from cnnbench import doctor as doctor_module
    from cnnbench import tables

    _answer(doctor_module.examine(), as_json, tables.facts)


def find_recipe(path: Path) -> Path:
    """Returns the recipe at a path; one that ships with cnnbench is found by its name too."""
    shipped = recipes_folder() / path.name
    if not path.exists() and str(path.parent) in (".", "recipes"):
        for candidate in (shipped, shipped.with_suffix(".yaml")):
            if candidate.is_file():
                return candidate
    return path


def recipes_folder() -> Path:
    """Returns the folder of the recipes that ship: in the package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; every error a user can make is one block of text and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(cli.main(arguments, prog_name="cnnbench", standalone_mode=False))
    except CnnbenchError as error:
        name = "interrupted" if isinstance(error, InterruptedRun) else "error"
        click.echo(f"{name}: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: nothing more was saved", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)


def _access(data_dir: Path | None) -> Access:
    from cnnbench.data.datasets import Access

    return Access(data_dir)


def _download_weights(recipe: Recipe) -> None:
    """Fetches the preset that a recipe starts from, if it does and the file is not at hand."""
    from cnnbench import presets, progress

    if (name := recipe.model.weights) in presets.PRESETS:
        with progress.downloading(f"weights {name}") as report:
            presets.download(name, report)


def _run(path: Path | None) -> Run:
    """Opens the run of that path, or the newest finished one, and says which."""
    from cnnbench.run import newest_run, open_run

    if path is not None:
        return open_run(path)
    run = newest_run(finished=True)
    _say(f"run: {run.path}")
    return run


def _run_around(artifact: Path) -> Run:
    """Opens the run that an artifact lies in."""
    from cnnbench.run import open_run

    for folder in artifact.absolute().parents:
        if (folder / "recipe.yaml").is_file() and (folder / "environment.json").is_file():
            return open_run(folder)
    raise UsageError(
        "the artifact lies in no run directory",
        where=str(artifact),
        allowed="name the RUN whose data and recipe it is for",
    )


def _say(text: str) -> None:
    click.echo(printable(text), err=True)


def _answer(result: dict[str, Any], as_json: bool, table: Any) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        from rich.console import Console

        console = Console()
        wide = Console(width=120)  # where nobody looks, a file or a pipe, nothing need be folded
        (console if console.is_terminal else wide).print(table(result))
