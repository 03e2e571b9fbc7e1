"""What is kept of the code that a run was trained by."""

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import cnnbench
from cnnbench.system import environment

PACKAGE = Path(cnnbench.__file__).parent


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    for name, text in (("a.py", "one = 1\n"), ("b/__init__.py", ""), ("b/c.py", "two = 2\n")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_hash_is_of_paths_and_content(package):
    before = environment.sources_sha256(package)
    assert before is not None and len(before) == 64
    (package / "a.py").write_text("one = 2\n")
    changed = environment.sources_sha256(package)
    (package / "a.py").write_text("one = 1\n")
    assert environment.sources_sha256(package) == before
    (package / "b" / "c.py").rename(package / "b" / "d.py")
    renamed = environment.sources_sha256(package)
    (package / "b" / "d.py").rename(package / "c.py")
    assert len({before, changed, renamed, environment.sources_sha256(package)}) == 4


def test_text_moved_from_one_file_to_the_next_is_another_hash(package):
    before = environment.sources_sha256(package)
    (package / "a.py").write_text("")
    (package / "b" / "__init__.py").write_text("one = 1\n")
    assert environment.sources_sha256(package) != before


def test_what_is_not_imported_does_not_count(package):
    before = environment.sources_sha256(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.py").write_text("x")
    (package / "recipes").mkdir()
    (package / "recipes" / "x.yaml").write_text("name: x")
    (package / "README.md").write_text("words")
    assert environment.sources_sha256(package) == before


def test_a_zip_has_the_hash_of_its_folder(package, tmp_path):
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for path in sorted(package.rglob("*.py"), reverse=True):
            archive.write(path, path.relative_to(tmp_path))
    found = environment.sources_sha256(zipfile.Path(tmp_path / "package.zip", "package/"))
    assert found == environment.sources_sha256(package)


def test_without_sources_there_is_no_hash(tmp_path):
    (tmp_path / "a.pyc").touch()
    assert environment.sources_sha256(tmp_path) is None


def test_the_code_is_that_of_the_package_that_is_imported(tmp_path):
    assert environment.code_sha256() == environment.sources_sha256(PACKAGE)
    archive = tmp_path / "cnnbench.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in PACKAGE.rglob("*.py"):
            file.write(path, path.relative_to(PACKAGE.parent))
    code = (
        f"import sys; sys.path.insert(0, {str(archive)!r})\n"
        "from cnnbench.system import environment\n"
        "assert 'cnnbench.zip' in environment.__file__\nprint(environment.code_sha256())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == environment.code_sha256()


def test_the_hash_is_quick_and_computed_once():
    times = []
    for _ in range(5):
        start = time.process_time()
        environment.sources_sha256(PACKAGE)
        times.append(time.process_time() - start)
    assert min(times) < 0.02
    environment.code_sha256()
    start = time.process_time()
    environment.code_sha256()
    assert time.process_time() - start < 0.001


def test_environment_json_has_the_hash_and_the_commit():
    found = environment.describe()
    assert found["code_sha256"] == environment.code_sha256()
    assert "git_commit" in found


def test_variables_that_no_recipe_says_are_told(monkeypatch):
    for name in environment.variables():
        monkeypatch.delenv(name)
    assert environment.notes() == []
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    assert environment.notes() == []
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=2")
    assert environment.notes() == [
        "environment variables that can change results: TF_XLA_FLAGS=--tf_xla_auto_jit=2"
    ]
