"""What `doctor` tells of a machine."""

import json
import os
import platform
from importlib import metadata

import pytest
from click.testing import CliRunner

from cnnbench.cli import cli
from cnnbench.report import doctor


@pytest.fixture
def prepared(tmp_path):
    """A folder as TFDS leaves it: two data sets, one in two versions, and one that is not ready."""
    for place in ("mnist/3.0.1", "cifar10/3.0.2", "cifar10/3.0.3"):
        (tmp_path / "tfds" / place).mkdir(parents=True)
        (tmp_path / "tfds" / place / "dataset_info.json").write_text("{}")
    (tmp_path / "tfds" / "cifar100" / "3.0.2.incomplete").mkdir(parents=True)
    return tmp_path / "tfds"


def test_versions_the_machine_and_the_devices_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = doctor.examine()
    assert found["python"] == platform.python_version()
    for package in ("cnnbench", "keras", "tensorflow", "numpy"):
        assert found[package] == metadata.version(package)
    assert found["cores"] == os.cpu_count() and found["memory_gib"] > 0 and found["cpu"]
    assert "device:CPU:0" in found["devices"]


def test_data_sets_that_are_prepared_are_named(monkeypatch, prepared):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    found = doctor.examine()
    assert found["data sets in"] == str(prepared)
    assert found["prepared there"] == "cifar10, mnist"


@pytest.mark.parametrize("variable", ["", None])
def test_without_a_folder_of_data_sets_it_is_that_of_tfds(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    if variable is None:
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
    found = doctor.examine()
    assert found["data sets in"] == str(tmp_path / "tensorflow_datasets")
    assert found["prepared there"] == "none"


def test_the_command_prints_an_object_or_a_table(monkeypatch, prepared):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout) == doctor.examine()
    lines = [line.split() for line in CliRunner().invoke(cli, ["doctor"]).stdout.splitlines()]
    assert ["prepared", "there", "cifar10,", "mnist"] in lines
    assert ["keras", metadata.version("keras")] in lines
