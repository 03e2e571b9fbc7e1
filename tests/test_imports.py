"""Who imports whom, and what an import costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnnbench

PACKAGE = Path(cnnbench.__file__).parent

# Rooms from the lowest up: each may import from those before it, and from its own.
FLOORS = (
    {"errors", "lazy", "signals", "workers"},
    {"registry", "files", "recipe_yaml", "tflite_files"},
    {"parts", "presets", "checkpoint"},
    {
        "recipe",
        "recipe_checks",
        "schedules",
        "optim",
        "lars",
        "models",
        "tasks",
        "provenance",
        "runtime",
        "weight_names",
    },
    {"data", "run", "weights", "listener", "compress"},
    {"events", "network", "artifacts", "steps", "tta", "robustness", "beginning"},
    {"learner"},
    {
        "training",
        "importing",
        "calibration",
        "verification",
        "evaluation",
        "prediction",
        "show",
        "plots",
        "smoke",
        "doctor",
        "tables",
        "progress",
    },
    {"exports", "tuning", "chain"},
    {"comparison"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnnbench"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    upwards = {other for other in imports_of(path) if FLOOR[other] > FLOOR[room]}
    assert not upwards
    assert "cli" not in imports_of(path) - {room} or room == "__main__"


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import cnnbench.cli",
        "import cnnbench.models; from cnnbench.parts import MODELS; MODELS.names()",
        f"import cnnbench; cnnbench.load_recipe({str(PACKAGE.parent)!r} + "
        "'/recipes/resnet20_cifar10.yaml')",
        "import cnnbench.training, cnnbench.exports, cnnbench.tables",
        "import cnnbench.artifacts.__main__, cnnbench.artifacts.tflite, cnnbench.artifacts.onnx",
    ],
)
def test_tensorflow_is_not_imported(code):
    assert not {"tensorflow", "keras", "torch"} & modules_after(code)


def test_importing_the_models_is_quick():
    code = (
        "import cnnbench.parts, time\nstart = time.perf_counter()\n"
        "import cnnbench.models\nprint(time.perf_counter() - start)"
    )
    # The first import compiles the modules, if the others may keep what it compiled.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    times = [
        float(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
        for _ in range(6)
    ]
    assert min(times) < 0.02
