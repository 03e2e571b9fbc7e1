"""The command line: thin commands that call the modules that do the work.

Commands import TensorFlow, Keras and everything that needs them when they are run.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import click

from cnnbench.cli import bench, evaluate, export, inspect, process, train
from cnnbench.cli.options import INTERRUPTED, say
from cnnbench.errors import CnnbenchError, InterruptedRun
from cnnbench.system.memory import keep_freed_memory
from cnnbench.system.output import discard

# Exit code of an error that nothing foresaw: EX_SOFTWARE of sysexits.h.
UNEXPECTED = 70


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cnnbench")
def cli() -> None:
    """Train, measure, compress and export convolutional networks from one YAML recipe.

    \b
    cnnbench train recipes/lenet5_digits.yaml
    cnnbench eval
    cnnbench export --tflite
    """  # noqa: D301 - click does not rewrap a paragraph that starts with \b


for _command in (
    train.train,
    train.import_weights,
    evaluate.evaluate,
    evaluate.predict,
    evaluate.compare,
    export.export,
    inspect.show,
    inspect.list_parts,
    inspect.schema,
    inspect.doctor,
    bench.bench,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a user's error is printed as text without a traceback.

    Args:
        arguments: the command-line arguments; None: those of the process.

    Raises:
        SystemExit: always, with the exit code.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_freed_memory()
    try:
        process.own()
        sys.exit(cli.main(arguments, prog_name="cnnbench", standalone_mode=False))
    except CnnbenchError as error:
        name = "interrupted" if isinstance(error, InterruptedRun) else "error"
        say(f"{name}: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted: nothing more was saved")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        discard(sys.stdout)
        sys.exit(1)
    except Exception as error:  # of cnnbench, a library or the system, which nothing foresaw
        say(f"error: {process.report(error)}")
        sys.exit(UNEXPECTED)
