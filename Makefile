# `make demo` shows the product, `make test` checks it. Every target installs what it needs into
# .venv first, where it is missing.

PYTHON ?= python3
WORKERS ?= logical
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WHEEL := build/wheel
# The wheel is unpacked beside the environment and comes first on the path: a file that is missing
# from the package is missing from the checks.
SITE := $(abspath build/site)
PYTEST = KERAS_MAS_INSTALLED=$(SITE) PYTHONPATH=$(SITE) $(BIN)/python -P -m pytest tests \
	--pyargs keras_mas --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal \
	--durations 5

.PHONY: demo test test-slow lint types wheel mutation format clean

demo: $(INSTALLED)
	$(BIN)/python -m keras_mas.training.demo

test: lint types wheel
	$(PYTEST) -m "not slow"

test-slow: wheel
	$(PYTEST) -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds `keras_mas.training` only where it is installed as such; the paths that it prints are
# turned back into those of the sources.
types: SHELL := /bin/bash -o pipefail
types: wheel
	cd $(SITE) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache | sed -E 's#^keras_mas/(training|serving)/#\1/#'

wheel: $(INSTALLED)
	rm -rf $(WHEEL) $(SITE) build/lib build/bdist.*
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEEL) .
	$(BIN)/pip install --quiet --no-deps --target $(SITE) $(WHEEL)/keras_mas-*.whl

# All mutants take hours: `make mutation SAMPLE=40 SEED=0` draws some.
mutation: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[training,serving,mutation]'
	$(BIN)/python tests/mutation.py $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(or $(SEED),0)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and \
		"Expected Python 3.11 to 3.13. Received: %d.%d. Name another: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable '.[training,serving,test]'
	touch $@

clean:
	rm -rf $(VENV) build mutants .mypy_cache *.egg-info
