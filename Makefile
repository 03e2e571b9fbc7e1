# `make demo` and `make test` need only Python 3.11, 3.12 or 3.13; they install everything else.
PYTHON ?= python3
BIN := .venv/bin
DEFAULT_TESTS := -n 2 --dist worksteal -m "not slow and not network and not gpu"
export TF_CPP_MIN_LOG_LEVEL = 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test shuffle check wheel smoke faults parity bench lint lock

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1  /p' $(MAKEFILE_LIST)

setup: .venv/installed ## create .venv with everything in requirements.lock

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## train, evaluate and export a small network, in about a minute
	$(BIN)/python scripts/demo.py

test: setup ## run the default tests
	$(BIN)/python -m pytest $(DEFAULT_TESTS)

shuffle: setup ## run the default tests in random order; prints the seed
	$(BIN)/python -m pytest -p randomly $(DEFAULT_TESTS)

check: setup ## run every test that this machine can, with coverage; takes far longer
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not network and not gpu" --cov=cnnbench \
		--cov-branch --cov-report=term:skip-covered

wheel: setup ## build the wheel, install it into an empty environment, and run the demo from it
	$(BIN)/python scripts/check_wheel.py

smoke: setup ## train every shipped recipe for a few steps, evaluate and export it
	$(BIN)/python scripts/smoke_recipes.py

faults: setup ## kill processes, damage files, fill disks: all fault tests; takes hours, needs strace
	$(BIN)/python -m tests.faults

parity: setup ## compare every network with keras.applications, torchvision and timm (installs PyTorch)
	$(BIN)/python -m pip install --quiet torch torchvision timm
	$(BIN)/python tests/parity.py

bench: setup ## time layers and training steps against Keras and PyTorch (installs PyTorch)
	$(BIN)/python -m pip install --quiet torch torchvision timm
	$(BIN)/python scripts/compare_layers.py
	$(BIN)/python scripts/compare_peers.py

lint: setup ## run ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: ## regenerate requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --group dev pyproject.toml --output-file requirements.lock
