"""Published weights by name: fetched from a real server, verified, kept whole or not at all."""

import hashlib
import http.server
import re
import threading

import pytest
from click.testing import CliRunner
from conftest import RECIPES

from cnnbench.cli import main
from cnnbench.errors import DataError, MissingDataError
from cnnbench.models.pretrained import presets
from cnnbench.models.pretrained.preprocessing import TORCHVISION
from cnnbench.models.pretrained.presets import PRESETS, Preset
from cnnbench.models.pretrained.sources import published_networks
from cnnbench.registry.kinds import MODELS, WEIGHT_FILES

CONTENT = bytes(range(256)) * 9000  # more than two chunks


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cnnbench" / "weights"


@pytest.fixture
def server():
    """An HTTP server; its list counts the requests, and /cut breaks off half-way."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if "cut" in self.path else CONTENT)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.requests = requests
    running.address = f"http://127.0.0.1:{running.server_port}"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def preset(monkeypatch):
    """A function that registers a preset at an address."""

    def register(address, sha256=None):
        digest = sha256 or hashlib.sha256(CONTENT).hexdigest()
        preset = Preset("resnet18", "timm:resnet18", address, digest, "CC0", TORCHVISION)
        monkeypatch.setitem(PRESETS, "x", preset)

    return register


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_of_a_network_with_its_hash_and_licence(name):
    preset = PRESETS[name]
    assert preset.model in MODELS.names()
    assert re.fullmatch("[0-9a-f]{64}", preset.sha256)
    assert preset.address.startswith("https://") and preset.address.endswith(WEIGHT_FILES)
    assert preset.licence
    assert preset.source in {source.name for source in published_networks(preset.model)}


def test_a_download_is_told_verified_and_kept(server, preset, cache):
    preset(f"{server.address}/weights.safetensors")
    told = []
    path = presets.download("x", lambda done, total: told.append((done, total)))
    assert path == cache / "x.safetensors" and path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT)) and len(told) > 1
    assert presets.download("x") == path and len(server.requests) == 1


def test_a_damaged_copy_is_fetched_anew(server, preset):
    preset(f"{server.address}/weights.safetensors")
    path = presets.download("x")
    path.write_bytes(CONTENT[:-1])
    assert presets.download("x").read_bytes() == CONTENT and len(server.requests) == 2


def test_another_file_is_refused_and_not_kept(server, preset, cache):
    preset(f"{server.address}/weights.safetensors", sha256="0" * 64)
    with pytest.raises(DataError, match="not the published file"):
        presets.download("x")
    assert not list(cache.iterdir())


def test_a_broken_connection_leaves_nothing(server, preset, cache):
    preset(f"{server.address}/cut.safetensors")
    with pytest.raises(MissingDataError, match="cannot download"):
        presets.download("x")
    assert not list(cache.iterdir())


def test_offline_is_a_clear_answer_and_exit_3(preset, cache, small, tmp_path, monkeypatch, capsys):
    preset("http://127.0.0.1:9/weights.safetensors")
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "model.name=resnet18", "--set", "model.weights=x"]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(small), *settings, "--set", "data.image_size=32"])
    assert ended.value.code == 3
    message = capsys.readouterr().err
    assert "127.0.0.1:9" in message and str(cache / "x.safetensors") in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("weights", "answer"),
    [
        ("resnet50.tv_in1k", r"a preset of resnet50, not of resnet18; use resnet18\.tv_in1k or"),
        (
            "resnet18.pth",
            r"'resnet18\.pth' is neither .*; use .* or a \.h5 file or a \.safetensors file",
        ),
    ],
)
def test_weights_that_cannot_fit_are_refused_with_their_line(weights, answer, capsys):
    recipe = str(RECIPES / "resnet18_folder.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["train", recipe, "--set", "data.path=.", "--set", f"model.weights={weights}"])
    assert ended.value.code == 2
    assert re.search(answer, capsys.readouterr().err)


def test_presets_are_listed():
    from cnnbench.cli import cli

    shown = CliRunner().invoke(cli, ["list", "presets", "--json"])
    assert shown.exit_code == 0 and all(f'"{name}"' in shown.output for name in PRESETS)
