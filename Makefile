# `make check` is what CI runs: it makes .venv if there is none, then lint, types, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := cli recipes passes formats kernels

.PHONY: gpu check lint types test fix docs browser conformance ends ends-lowest ends-newest

# Where nobody is to compile, each of the processes that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# Types keep one processor busy, and tests leave some of two unused.
check: lint
	$(MAKE) -j 2 types test

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt torch  # most of it is never imported
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev,llamacpp]'
	touch $@

# mypy cannot follow the editable install's import hook: it sees the rooms as a package through links.
.typecheck/compress:
	mkdir -p $@
	for room in $(ROOMS); do ln -sfn ../../$$room $@/$$room; done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fix: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/installed .typecheck/compress
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py

# Two workers of one thread each: tests start many processes and have small matrices.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The site, into site/: a broken link, a command or a figure that there is not, is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# report.html in Debian's Chromium, driven by playwright; without one, the tests are skipped elsewhere, and fail here.
browser: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt playwright
	command -v chromium chromium-browser google-chrome
	$(BIN)/python -m pytest tests/recipes/page/test_browser.py

# The tests at both ends of the dependencies' ranges, each in an environment of its own: gigabytes and time as well.
ENDS := .ends
ends: ends-lowest ends-newest
ends-lowest: WARNINGS := -W default::DeprecationWarning  # old packages warn of each other

ends-lowest ends-newest: ends-%: $(ENDS)/%.txt
	$(PYTHON) -m venv $(ENDS)/$*
	$(ENDS)/$*/bin/pip install -q -U -c $< -e '.[dev]'
	OMP_NUM_THREADS=1 $(ENDS)/$*/bin/python -m pytest -n 2 --dist loadfile $(WARNINGS)

$(ENDS)/lowest.txt: pyproject.toml
	mkdir -p $(ENDS)
	sed -n '/^dependencies/,/^]/s/^ *"\([a-z0-9_]*\)>=\([0-9.]*\)",.*/\1==\2/p' $< > $@

$(ENDS)/newest.txt:
	mkdir -p $(ENDS)
	touch $@

# On a machine with a GPU: all tests there, then the figures of benchmarks/RESULTS-gpu.md.
gpu: $(VENV)/installed
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile && $(BIN)/python benchmarks/gpu.py; \
	else echo "make gpu: skipped, torch sees no GPU here"; fi

# Engines take gigabytes and time: not part of `check`. ENGINES is where their environments are, or will be.
ENGINES := .engines
conformance: $(VENV)/installed
	$(BIN)/python tests/conformance/table/environments.py $(ENGINES)
	$(BIN)/python tests/conformance/table --engines $(ENGINES)
	PATH="$(abspath $(ENGINES))/vllm/bin:$$PATH" $(BIN)/python -m pytest -rs tests/cli/commands/test_serve.py
	$(BIN)/python -m pytest -rs tests/recipes/tasks  # with lm-eval where it is installed (".[eval]"), else it says so
