# Every target sets the machine up first: a virtual environment with the versions of requirements.lock, and a thin one
# beside it for the page, with what requirements-app.lock has on top.
#   make demo    digits in, generated digits and a report out       make test    every test
#   make quick   tests without slow and cluster ones                make check   format, lint, types, layers, tests
#   make long    matrices, random kills, whole demos                make docs    equation map and picture of the house
#   make site    the documentation as pages, build/site/index.html

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help browser demo test quick long check format lint types layers docs site setup clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,6s/^#  //p' Makefile

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.lock requirements-app.lock tools/install.sh
	@tools/preflight.sh $(PYTHON)
	@tools/install.sh $(PYTHON) $(VENV)
	@touch $@

browser:
	@tools/preflight.sh $(PYTHON) browser

demo: $(INSTALLED)
	$(BIN)/nvg demo

# What starts Ray, DeepSpeed's launcher or StreamingDataset runs one at a time, all else in two processes.
# The tests of the page run in its environment, those of them that need no Gradio in both.
PYTEST := $(BIN)/python -m pytest

test: browser $(INSTALLED)
	$(PYTEST) -n 2 -m "not cluster and not long and not page"
	$(PYTEST) -m "cluster and not long"
	$(VENV)-app/bin/python -m pytest -n 2 tests/pipelines/app

quick: $(INSTALLED)
	$(PYTEST) -n 2 -m "not slow and not cluster and not long and not page"

long: $(INSTALLED)
	$(PYTEST) -m long --timeout 3600

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/pyright

layers: $(INSTALLED)
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/python tools/equation_map.py
	$(BIN)/python -m tools.house --draw docs/architecture.png

site: $(INSTALLED)
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet -b html docs build/site
	@echo build/site/index.html

check: browser lint types layers test

# Everything the commands made, apart from runs/: those are somebody's work.
clean:
	rm -rf $(VENV) $(VENV)-app build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find nvg pipelines cluster eval tests -name __pycache__ -type d -prune -exec rm -rf {} +
