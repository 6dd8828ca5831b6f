# Every target sets up what it needs, once. `make setup` alone creates .venv with the three distributions in it.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

EXTENSION := exodus_core/setup.py $(shell find exodus_core/csrc -type f)
PROJECTS := exodus_core/pyproject.toml service/pyproject.toml client/pyproject.toml

.PHONY: help setup serve lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.installed ## create .venv, build the extension, install the three distributions editable

$(VENV)/.requirements: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --requirement requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.requirements $(EXTENSION) $(PROJECTS)
	$(PIP) install --quiet --no-build-isolation --no-deps \
		--editable ./exodus_core --editable ./client --editable ./service
	@touch $@

serve: setup ## start the service on HOST:PORT
	$(BIN)/exodus-service serve --host $(HOST) --port $(PORT)

lock: ## pin requirements.in in requirements.lock, on a machine of the kind that it is for
	$(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-header \
		--output-file requirements.lock requirements.in

clean: ## remove everything that was built or installed
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage demo-output
	find . -name '*.egg-info' -prune -exec rm -rf {} + -o -name '__pycache__' -prune -exec rm -rf {} +
	rm -rf exodus_core/build exodus_core/src/exodus_core/*.so
