# Everything happens in .venv, made by the first target that needs it. UV may be set to a uv that is there already.
.PHONY: setup cotrain ui test test-all lint format lock clean
.DEFAULT_GOAL := help

PYTHON ?= python3
export UV_NO_PROGRESS := 1
# Without compiled bytecode every Ray process would compile torch again: seconds each, a dozen processes a run.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make cotrain   set up, then co-train the sample suite (about 5 minutes on two cores)"
	@echo "make ui        look at the runs in MLflow"
	@echo "make setup     only set up .venv"
	@echo "make test      the tests;  make test-all: the slow ones too;  make lint: style and structure"

setup: .venv/installed

# uv comes from the package index like everything else. The lock holds exact versions for all platforms.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13) and f"Python 3.11 to 3.13 is needed, {v[0]}.{v[1]} was found: make PYTHON=python3.12 ...")'
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing the packages of requirements.lock into .venv (about 6 GB, mostly torch) ..."
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --requirement requirements.lock
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

cotrain: setup
	@.venv/bin/python jobs/cotrain.py

ui: setup
	@MLFLOW_DISABLE_TELEMETRY=true .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db

# Two files at a time: tests wait for processes more than they compute.
test: setup
	.venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

# TESTS='-m "not soak"' leaves out those for which CI has no time.
test-all: setup
	.venv/bin/python -m pytest -n 2 --dist loadfile --durations=40 $(TESTS)

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports

format: setup
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# Exact versions of everything, for every platform, without the name of any package host.
lock: setup
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --group dev --all-extras --no-header \
		--no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache
