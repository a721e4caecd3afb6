# Two commands do everything on a fresh machine that has Python >= 3.11:
#
#   make explore   set up .venv, then open the explorer on a bundled model at localhost
#   make test      set up .venv, then run the tests
#
# Variables: PYTHON=python3.12  another interpreter;  ARGS="..."  passed on to the command
#            TORCH_INDEX=URL    a further package index for torch. On Linux the default index brings the CUDA build (several GB);
#                               the URL of the CPU build, or of another CUDA version, is given on https://pytorch.org/get-started

PYTHON ?= python3
ARGS ?=
TORCH_INDEX ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
# Named by content, not by time: nothing is installed again until one of these files changes.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
READY := .venv/.ready-$(KEY)
READY_DEV := .venv/.ready-dev-$(KEY)

.PHONY: help explore test slow browser gpu extras bench lint format
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
	@echo "Also: make slow | browser | gpu (marked tests), make extras, make lint | format, make bench"

explore: $(READY)
	$(BIN)/interp explore $(ARGS)

test: $(READY_DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

slow: $(READY_DEV)
	$(BIN)/python -m pytest -m "slow and not browser and not gpu and not ray" --timeout 1200 $(ARGS)

browser: $(READY_DEV)
	$(BIN)/python -m pytest -m "browser and not gpu and not ray" $(ARGS)

gpu: $(READY_DEV)
	$(BIN)/python -m pytest -m gpu $(ARGS)

# What is checked against optional packages: kernels in triton's interpreter, real int8 products. They are kept apart from .venv's own.
extras: $(READY_DEV) | .venv/extras
	PYTHONPATH=.venv/extras $(BIN)/python -m pytest tests/saes/test_kernels.py tests/interp/quant/test_int8_execution.py $(ARGS)

.venv/extras: | $(READY_DEV)
	$(BIN)/python -m pip --disable-pip-version-check install --no-deps --target .venv/extras triton torchao || { rm -rf .venv/extras; exit 1; }

# all three report, whichever fails
lint: $(READY_DEV)
	@status=0; for tool in "ruff check ." "ruff format --check ." pyright; do \
		echo "== $$tool"; $(BIN)/$$tool || status=1; \
	done; exit $$status

format: $(READY_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY_DEV)
	@for file in experiments/benchmarks/[!_]*.py; do \
		echo "== $$file"; $(BIN)/python -m "experiments.benchmarks.$$(basename "$$file" .py)" || exit 1; \
	done

# torch first, on its own line: it is the large one, and the only one with builds to choose from.
define install
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch setuptools
	$(PIP) --no-build-isolation --editable '$(1)'
	@rm -f .venv/.ready-*
endef

$(READY): | $(BIN)/python
	$(call install,.)
	@touch $(READY)

$(READY_DEV): | $(BIN)/python
	$(call install,.[dev])
	@touch $(READY) $(READY_DEV)

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' here. Python 3.11 or newer is needed: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "'$(PYTHON)' cannot make a virtual environment (Debian and Ubuntu: install the package python3-venv)." >&2; exit 1; }
