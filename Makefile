# Two commands: `make demo` tries all seven experts, `make test` proves the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TEST_ENV := RAY_USAGE_STATS_ENABLED=0
# Files of tests beside each other, the longest of few tests not last; those on a cluster have the
# machine to themselves.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint unit ray clean

demo: $(VENV)/.core ## try all seven experts on bundled pictures, write demo/index.html
	@$(BIN)/sm4ll demo --output demo

test: $(VENV)/.dev ## ruff, mypy, import-linter, the tests on local clusters, then all others
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(TEST_ENV) $(BIN)/python -m pytest -m ray
	$(TEST_ENV) $(BIN)/python -m pytest $(BESIDE)

unit: $(VENV)/.dev ## the tests that need no cluster
	$(BIN)/python -m pytest $(BESIDE)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with make PYTHON=...")'
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what serving needs (about a minute the first time) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.core
	@echo "Installing what the tests need ..."
	@$(PIP) pip
	@$(PIP) -e ".[diffusion,kubernetes]" --group dev
	@touch $@

clean: ## remove everything make created
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
