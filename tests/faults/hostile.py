"""What means harm, fed to the tool in a process that watches what it takes and does."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cnnbench.runs import checkpoint
from cnnbench.system.measure import peak_memory_mb

from .checks import ROOT, as_command, check, child, spread
from .harness import Try, read_all, row
from .models import MODELS, SECRET
from .recipes import REFUSED, SHOWN, Make

MAX_SECONDS, MAX_MB, MAX_OUTPUT = 2.0, 500.0, 20_000
# Where a process that goes wrong is ended; what is allowed is measured, not enforced.
CAP_SECONDS, CAP_BYTES = 6, 2 * 1024**3
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CODE = {f"os.{name}" for name in ("system", "exec", "posix_spawn", "fork")}
CODE |= {"subprocess.Popen", "pickle.find_class"}
CHANGES = {
    f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "symlink", "link", "truncate")
}


def hostile() -> None:
    """Does what the arguments say, and writes what it took and did that it should not.

    Arguments: a file for the report, the only folder to write in, what to do, its arguments.
    """
    report, allowed, action, *arguments = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CPU, (CAP_SECONDS, CAP_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (CAP_BYTES, CAP_BYTES))
    seen: list[str] = []

    def outside(*paths: object) -> bool:
        full = [os.path.realpath(path) for path in paths if isinstance(path, str | os.PathLike)]
        return any(not path.startswith(f"{allowed}/") and path != os.devnull for path in full)

    def hook(event: str, values: tuple) -> None:
        # Python's own platform module asks uname.
        if event in CODE and values[0] != "uname":
            seen.append(f"{event} {values}"[:200])
        elif event == "open" and isinstance(values[2], int):
            writes = values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not values[2] & os.O_NOFOLLOW and outside(values[0]):
                seen.append(f"opened {values[0]!r} to write")
        elif event in CHANGES and outside(*values):
            seen.append(f"{event} {values}")

    sys.addaudithook(hook)
    try:
        ACTIONS[action](*arguments)
    finally:
        done = list(seen)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        taken = {"seconds": usage.ru_utime + usage.ru_stime, "mb": peak_memory_mb()}
        Path(report).write_text(json.dumps(taken | {"seen": done}))


def _command(*arguments: str) -> None:
    from cnnbench import cli

    cli.main(arguments)


class _Bias:
    """Stands for a network's only weight."""

    path, shape = "logits/bias", (16,)

    def assign(self, values: np.ndarray) -> None:
        """Takes any values."""


class _Network:
    """Stands for a network, which would need TensorFlow."""

    name, output_shape, weights = "vgg16", (None, 16), (_Bias(),)


def _weights(path: str) -> None:
    from cnnbench.models.pretrained.load import start_from
    from cnnbench.registry.kinds import model_spec

    as_command(lambda: start_from(_Network(), model_spec("vgg16", weights=path)))


def _checkpoint(path: str) -> None:
    as_command(lambda: checkpoint.newest(Path(path) / "checkpoints"))


def _run(path: str) -> None:
    from cnnbench.runs import run as runs

    def work() -> None:
        found = runs.open_run(path)
        found.data()
        found.metrics()
        with found.locked():
            pass

    as_command(work)


def _show(path: str) -> None:
    """Prints a recipe as `show` does, without the network, and writes it as `train` does."""
    from cnnbench.cli import options
    from cnnbench.recipe.load import load_recipe
    from cnnbench.report import tables

    def work() -> None:
        text = load_recipe(path).dump()
        options.answer({"facts": {}, "stages": [], "recipe": text}, False, tables.model)
        Path("recipe_again.yaml").write_bytes(text.encode())

    as_command(work)


ACTIONS: dict[str, Callable[..., None]] = {
    "command": _command,
    "weights": _weights,
    "checkpoint": _checkpoint,
    "run": _run,
    "show": _show,
}


def harmless(make: Make, codes: tuple[int, ...], folder: Path, _: random.Random) -> None:
    """Feeds something hostile to the tool, which refuses it quickly and does nothing else."""
    folder = folder.resolve()
    work, outside = folder / "work", folder / "outside"
    for place in (work, outside, work / "tmp"):
        place.mkdir()
    (outside / "secret.txt").write_text(SECRET * 20)
    Image.new("RGB", (9, 9)).save(outside / "image.png")
    action = make(work)
    before = read_all(outside)
    report = folder / "report.json"
    names = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
    environment = os.environ | {name: str(work / place) for name, place in names.items()}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        child(hostile, report, work, *action),
        capture_output=True,
        cwd=work,
        env=environment,
        timeout=20,
    )
    output, error = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    said = f"{output}{error}"
    check("Traceback" not in said, f"a traceback: …{said[-400:]}")
    check(done.returncode in codes, f"exit code {done.returncode}: {said[:400]}")
    if done.returncode:
        check(error.startswith("error: "), f"not one block of error: {error[:400]}")
        check(error.count("\nerror: ") == 0 and not output, f"more than an error: {said[:400]}")
    check(len(said) <= MAX_OUTPUT, f"{len(said)} characters of output: {said[:200]}")
    if found := CONTROL.search(said):
        near = said[max(0, found.start() - 60) : found.end() + 20]
        raise AssertionError(f"a raw control character: {near!r}")
    check(SECRET not in said, f"the secret is told: {said[:400]}")
    taken = json.loads(report.read_text())
    check(taken["seconds"] <= MAX_SECONDS, f"{taken['seconds']:.1f} s of processor time")
    check(taken["mb"] <= MAX_MB, f"{taken['mb']:.0f} MB")
    check(not taken["seen"], f"it did {taken['seen']}")
    check(read_all(outside) == before, "files outside changed")
    check(not (outside / "pwned").exists(), "code ran")


@row(20, "hostile recipes and models: refused at once, nothing run or written", full=90, short=5)
def hostile_input(count: int) -> Iterator[Try]:
    """Each is refused with exit code 2, 3 or 6; those that only look strange may be shown."""
    refused = REFUSED | MODELS
    tries: list[Try] = [functools.partial(harmless, make, (2, 3, 6)) for make in refused.values()]
    tries += [functools.partial(harmless, make, (0,)) for make in SHOWN.values()]
    yield from spread(tries, count)
