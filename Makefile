# `make demo` and `make test` set up what they need; `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.fovea-stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Stages of dvc.yaml say `python`, which must be the environment's.
export PATH := $(BIN):$(PATH)
# The same defaults as infra/environment.py, for tools that are started from here directly.
export DO_NOT_TRACK ?= 1
export DVC_NO_ANALYTICS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS ?= 120
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S ?= 0.2
export RAY_TRAIN_ENABLE_PRINT_PATCH ?= 0
export RAY_CHDIR_TO_TRIAL_DIR ?= 0
export RAY_TRAIN_V2_ENABLED ?= 1
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint ui bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP)  ## build .venv from constraints.txt (PYTHON=... chooses the interpreter, at least 3.11)

# torch goes first and alone: index hosts with a CPU build give that, others (PyPI on Linux) the CUDA build with its
# nvidia packages, which is right for machines with a GPU. setuptools next, because the editable install needs it and
# a new 3.11 environment is born with a version that is too old.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; call make with PYTHON=<path of a newer one>" >&2; exit 1; }
	@echo "[1/4] environment $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/4] torch (the largest download)"
	@$(PIP) install $$(grep -E '^torch==' constraints.txt)
	@echo "[3/4] the other packages, about 300"
	@$(PIP) install -q $$(grep -E '^setuptools==' constraints.txt)
	@$(PIP) install --no-build-isolation -c constraints.txt -e '.[dev]' | $(BIN)/python infra/progress.py
	@echo "[4/4] Prefect's database"
	@test -n "$${PREFECT_API_URL:-}" || $(BIN)/prefect server database upgrade -y > /dev/null
	@touch $@

demo: setup  ## the whole chain on a small made-up data set: videos, shards, five trainings, registry, report
	@$(BIN)/python -m flows.reproduce demo
	@$(BIN)/python -m infra.summary demo

test: setup  ## all tests: the quick ones, then those with many processes
	$(BIN)/python -m pytest -n 2 --dist loadgroup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow --timeout=600

lint: setup  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: setup  ## MLflow and Prefect in the browser; Ctrl-C ends both
	@$(BIN)/python -m infra.ui

bench: setup  ## the benchmarks of benchmarks/, one after another
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove work in progress and tool caches; data, runs and the registry stay
	rm -rf .work .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
