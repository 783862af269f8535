# make install  .venv with everything       make demo   the whole way of the data on made clips
# make test     pytest, two files at a time   make lint   ruff and mypy          make check   both
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_WITH := $(shell cat $(INSTALLED) 2>/dev/null)
CONSTRAINTS ?= $(or $(INSTALLED_WITH),constraints.txt)

.PHONY: install demo test lint check clean

install: $(INSTALLED)

ifneq ($(CONSTRAINTS),$(INSTALLED_WITH))
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "make: $(PYTHON) is not Python 3.10 to 3.12: run 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 2; }
	@rm -f "$@"
	$(PYTHON) -m venv "$(VENV)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@echo "$(CONSTRAINTS)" > "$@"

demo: install
	$(PY) -m tools.demo

test: install
	$(PY) -m pytest -n 2 --dist loadfile

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint test

clean:
	rm -rf "$(VENV)" demo .pytest_cache .mypy_cache .ruff_cache
