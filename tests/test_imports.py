"""Who imports whom, and what an import costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnnbench

PACKAGE = Path(cnnbench.__file__).parent

# Rooms in the order in which they may import: each from itself and from those before it.
ROOMS = (
    "errors",
    "system",
    "backend",
    "registry",
    "tasks",
    "models",
    "data",
    "optim",
    "compression",
    "recipe",
    "runs",
    "training",
    "exports",
    "evaluation",
    "bench",
    "search",
    "report",
    "cli",
)
# What stands beside the rooms: the public names, imported when used, and the entry point.
BESIDE = {"__init__", "__main__", "py"}
MAX_ENTRIES, MAX_LINES = 20, 400
# What one task knows, and reports may draw.
OF_CLASSIFICATION = re.compile(r"\b(top-?[15](_\w+)?|softmax)\b", re.IGNORECASE)


def modules() -> dict[str, Path]:
    """The modules of the package by their dotted names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """The modules of cnnbench that a file imports: at the top, in functions, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("cnnbench")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if (node.module or "").split(".")[0] == "cnnbench":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in MODULES else str(node.module) for name in names}
    return found


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def test_every_module_is_in_a_room():
    assert {room_of(module) for module in MODULES} <= {*ROOMS, *BESIDE}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in BESIDE])
def test_imports_go_one_way(module):
    height = ROOMS.index(room_of(module))
    allowed = set(ROOMS[: height + 1])
    upwards = {other for other in imports_of(MODULES[module]) if room_of(other) not in allowed}
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    left = {module: imports_of(path) & MODULES.keys() for module, path in MODULES.items()}
    # A package's docstring is imported with every module in it.
    left = {module: {o for o in others if o != module} for module, others in left.items()}
    while ready := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in ready}
    assert not left


def test_the_package_is_easy_to_survey():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "recipes")]
    assert len(entries) <= MAX_ENTRIES
    long = [name for name, p in MODULES.items() if len(p.read_text().splitlines()) > MAX_LINES]
    assert not long


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in ("tasks", "report")])
def test_only_tasks_know_what_classification_is(module):
    lines = MODULES[module].read_text().splitlines()
    assert not [line.strip() for line in lines if OF_CLASSIFICATION.search(line)]


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import cnnbench.cli",
        "import cnnbench.models; from cnnbench.registry.kinds import MODELS; MODELS.names()",
        f"import cnnbench; cnnbench.load_recipe({str(PACKAGE.parent)!r} + "
        "'/recipes/resnet20_cifar10.yaml')",
        "import cnnbench.training.stages, cnnbench.exports.export, cnnbench.report.tables",
        "import cnnbench.exports.serve; from cnnbench.exports.formats import onnx, tflite",
    ],
)
def test_tensorflow_is_not_imported(code):
    assert not {"tensorflow", "keras", "torch"} & modules_after(code)


def test_the_models_are_imported_when_they_are_asked_for():
    models = {m for m in modules_after("import cnnbench.registry.kinds, cnnbench.models")
              if m.startswith("cnnbench.models.")}  # fmt: skip
    assert not models


def test_home_folders_are_found_by_one_function():
    """Path.expanduser raises RuntimeError for ~nobody/x; ruff cannot ban a method."""
    calls = [
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "expanduser"
    ]
    assert calls == ["cnnbench.system.files"]
