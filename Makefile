# `make demo` and `make test` do their own set-up in .venv; `make` alone lists the targets.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo demo-colormnist reproduction docs test suite test-fast test-slow lint format options bench ffcv clean check-host

PYTHON ?= python3
JOBS   ?= 2#              processes of `make test`
VENV   ?= .venv
EXTRAS ?= dali,eval,dev# with a CUDA 12 driver: make EXTRAS=dali-cu12,eval,dev …
ARGS   ?=#               more options for the command that the target runs

PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# On a terminal pip shows its progress; in a log it keeps quiet.
PIP   := $(PY) -m pip --disable-pip-version-check --no-input $(if $(MAKE_TERMOUT),,-qq)

# Pinned to an old requests, which nothing here needs; foolbox is the tests' second opinion.
ATTACKS := torchattacks foolbox eagerpy

FFCV_DEBS := libopencv-dev libturbojpeg0-dev pkg-config g++

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## train on photographs that packages ship, and draw what changed (runs/demo)
	@$(PY) -m fastsc.demo $(ARGS)

demo-colormnist: $(STAMP) ## color bias on real digits, without and with the constraint (runs/colormnist)
	@$(PY) -m fastsc.colormnist_demo $(ARGS)

reproduction: $(STAMP) ## docs/reproduction.md, its commands and figures anew, from the runs' committed records
	@$(PY) -m fastsc.reproduce page $(ARGS)

docs: $(STAMP) ## the documentation as a site (site/index.html); a dead link fails
	@$(PY) -c 'import mkdocs, mkdocstrings, material' 2>/dev/null || $(PIP) install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict $(ARGS)
	echo "Wrote site/index.html"

test: ## the tests that are quick and, at the same time, lint (4 to 7 minutes on two cores)
	@$(MAKE) --no-print-directory -j2 suite lint || {
	    echo "make test: the tests or lint failed; make lint runs lint alone" >&2; exit 1; }

suite: $(STAMP)
	@$(PY) -m pytest -q -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

test-fast: $(STAMP) ## while you write: no processes, no interpreted kernels, no browser
	@$(PY) -m pytest -q -m "not slow and not heavy" -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(STAMP) ## the long tests: fuzzing, faults, memory
	@$(PY) -m pytest -q -m slow --timeout 1800 $(ARGS)

lint: $(STAMP) ## ruff, formatting, types, and that no import runs up the floors
	@$(PY) -m ruff check --quiet .
	$(PY) -m ruff format --quiet --check . || { echo "make lint: run \`make format\`" >&2; exit 1; }
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache | tail -n +4

format: $(STAMP) ## write the files in ruff's format
	@$(PY) -m ruff check --quiet --fix . || true
	$(PY) -m ruff format .

options: $(STAMP) ## docs/options.md and docs/commands.md anew, from the options themselves
	@$(PY) -m fastsc.config.table > docs/options.md
	$(PY) docs/commands.py > docs/commands.md

bench: $(STAMP) ## kernels and loaders, compared with their peers (about 15 minutes)
	@$(PY) -m bench.kernels $(ARGS)
	$(PY) -m bench.loaders $(ARGS)
	$(PY) -m bench.agreement $(ARGS)

clean: ## remove caches and build files (.venv and runs stay)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find fastsc pipelines kernels bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up -------------------------------------------------------------------------------------

check-host:
	@if [ "$$(uname -s)" != Linux ]; then
	    echo "make: fastsc runs on Linux (this is $$(uname -s)): DALI and FFCV have no build for it" >&2
	    exit 1
	fi
	if ! [ -d fastsc/kernels/ ] || ! [ -d fastsc/pipelines/ ]; then
	    echo "make: fastsc/kernels and fastsc/pipelines must be symbolic links; on a file system that has" \
	        "them: git config core.symlinks true && git checkout -- fastsc" >&2
	    exit 1
	fi
	if ! command -v $(PYTHON) >/dev/null \
	    || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
	    echo "make: Python 3.11 or newer is needed and $(PYTHON) is not;" \
	        "name one: make PYTHON=python3.12 …" >&2
	    exit 1
	fi

$(STAMP): setup.py pyproject.toml | check-host
	@echo "Setting up $(VENV): about 7 GB and a few minutes, this once."
	if ! [ -x $(PY) ] && ! $(PYTHON) -m venv $(VENV); then
	    rm -rf $(VENV)
	    echo "make: no virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2
	    exit 1
	fi
	$(PIP) install --upgrade pip
	$(PIP) install -e '.[$(EXTRAS)]'
	$(PIP) install --no-deps $(ATTACKS)
	$(MAKE) --no-print-directory ffcv
	touch $@
	echo "Set up. \`$(PY) -m fastsc.train --help\` or \`source $(VENV)/bin/activate\`."

# FFCV compiles against the system's OpenCV. Without it everything but its pipeline works, so nothing
# here is fatal.
ffcv: ## try (again) to install FFCV into .venv
	@log=$(VENV)/ffcv.log; : > $$log
	if ! { pkg-config --exists opencv4 libturbojpeg && command -v c++; } >> $$log 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >> $$log; then
	    echo "Installing $(FFCV_DEBS), for FFCV."
	    export DEBIAN_FRONTEND=noninteractive
	    { apt-get update -q || true; apt-get install -y -q --no-install-recommends $(FFCV_DEBS); } \
	        < /dev/null >> $$log 2>&1 || true
	fi
	if $(PIP) install -e '.[ffcv]' >> $$log 2>&1; then
	    echo "FFCV is installed."
	else
	    echo "Going on without FFCV, which did not build (see $$log). It needs a C++ compiler, Python's"
	    echo "headers, libopencv-dev, libturbojpeg0-dev and pkg-config; then run \`make ffcv\`."
	fi
