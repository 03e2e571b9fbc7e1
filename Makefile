# `make demo` and `make test` need Python 3.11, 3.12 or 3.13 and nothing else; the rest follows them.
PYTHON ?= python3
BIN := .venv/bin
DEFAULT_TESTS := -n 2 --dist worksteal -m "not slow and not network and not gpu"
export TF_CPP_MIN_LOG_LEVEL = 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test shuffle check wheel smoke faults parity bench lint lock

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1  /p' $(MAKEFILE_LIST)

setup: .venv/installed ## make .venv with everything, from the lock

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## train, evaluate and export a small network: a minute
	$(BIN)/python scripts/demo.py

test: setup ## the default tests: within 12 minutes
	$(BIN)/python -m pytest $(DEFAULT_TESTS)

shuffle: setup ## the default tests in a random order, whose seed it prints
	$(BIN)/python -m pytest -p randomly $(DEFAULT_TESTS)

check: setup ## every test that this machine can run, with its coverage; takes far longer
	$(BIN)/python -m pytest -m "not network and not gpu" --cov=cnnbench --cov-branch \
		--cov-report=term:skip-covered

wheel: setup ## build the wheel, install it into an empty environment, and run the demo from it
	$(BIN)/python scripts/check_wheel.py

smoke: setup ## a few steps of every recipe that ships, then eval and export
	$(BIN)/python scripts/smoke_recipes.py

faults: setup ## kill, damage, fill the disk: the whole scoreboard; hours, and needs strace
	$(BIN)/python -m tests.faults

parity: setup ## every network against keras.applications, torchvision and timm (installs PyTorch)
	$(BIN)/python -m pip install --quiet torch torchvision timm
	$(BIN)/python tests/parity.py

bench: setup ## layers against Keras's, training steps against it and PyTorch's (installs PyTorch)
	$(BIN)/python -m pip install --quiet torch torchvision timm
	$(BIN)/python scripts/compare_layers.py
	$(BIN)/python scripts/compare_peers.py

lint: setup ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: ## resolve requirements.lock anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --group dev pyproject.toml --output-file requirements.lock
