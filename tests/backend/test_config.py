"""Keras's own settings, of its file or of a caller, change no number and are put back."""

import os
import subprocess
import sys

import keras
import pytest
from conftest import TINY

import cnnbench
from cnnbench.backend import private, session
from cnnbench.errors import UsageError
from cnnbench.system import environment

ODD = ("float16", 1e-3, "channels_first")


@pytest.fixture
def odd():
    private._set_config(ODD)
    yield
    private._set_config(private.OWN_CONFIG)


def test_settings_are_the_defaults_inside_and_put_back(odd):
    with pytest.raises(ZeroDivisionError), session.isolated():
        assert private._config() == private.OWN_CONFIG
        assert keras.layers.Dense(1).compute_dtype == "float32"
        raise ZeroDivisionError
    assert private._config() == ODD


def test_a_callers_settings_do_not_change_a_training(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("epochs: 3", "steps: 2"))
    recipe = cnnbench.load_recipe(tmp_path / "tiny.yaml", ("schedule.warmup_epochs=0",))
    plain = cnnbench.train(recipe, run_dir=tmp_path / "plain").weights_sha256()
    private._set_config(ODD)
    try:
        assert cnnbench.train(recipe, run_dir=tmp_path / "odd").weights_sha256() == plain
        assert private._config() == ODD
    finally:
        private._set_config(private.OWN_CONFIG)


FIRST_IMPORT = """
from cnnbench.backend import lazy, session
with session.isolated():
    print(lazy.keras.config.floatx(), lazy.keras.config.image_data_format())
print(lazy.keras.config.floatx(), lazy.keras.config.image_data_format())
"""


def test_the_file_of_settings_is_left_to_the_caller(tmp_path):
    text = '{"floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}'
    (tmp_path / "keras.json").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMPORT],
        capture_output=True, text=True, env={**os.environ, "KERAS_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split() == ["float32", "channels_last", "float16", "channels_first"], done


def test_another_backend_is_refused_in_one_line(odd, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(keras.config, "backend", lambda: "jax")
        with pytest.raises(UsageError) as found, session.isolated():
            pass
    with session.isolated():  # which the refusal has not left open
        assert private._config() == private.OWN_CONFIG
    said = "Keras was imported with the backend jax; set KERAS_BACKEND=tensorflow before"
    assert str(found.value) == f"{said} Keras is imported"
    code = "from cnnbench.backend import lazy; lazy.load('keras')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, "KERAS_BACKEND": "torch"},
    )  # fmt: skip
    assert "UsageError: KERAS_BACKEND is 'torch'; must be tensorflow or unset" in done.stderr


def test_variables_that_change_numbers_are_told(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    found = environment.describe()["variables"]
    assert found["TF_ENABLE_ONEDNN_OPTS"] == "0" and found["OMP_NUM_THREADS"] == "3"
    assert not {"AWS_SECRET_ACCESS_KEY", "XLA_FLAGS", "HOME"} & found.keys()
