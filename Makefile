# Two commands for everything: `make demo` shows the product, `make test` checks it. Both install
# what they need into .venv first, where it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WHEEL := build/wheel

.PHONY: demo test lint format clean

demo: $(INSTALLED)
	$(BIN)/python -m keras_mas.training.demo

# The wheel is built and unpacked beside the environment, and comes first on the path: a file that
# is missing from the package is missing from the tests.
test: lint
	rm -rf $(WHEEL) build/lib build/bdist.*
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEEL) .
	$(BIN)/pip install --quiet --no-deps --target $(WHEEL)/site $(WHEEL)/keras_mas-*.whl
	KERAS_MAS_INSTALLED=$(abspath $(WHEEL)/site) PYTHONPATH=$(abspath $(WHEEL)/site) \
		$(BIN)/pytest tests --pyargs keras_mas --durations=5

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
	rm -rf $(VENV) build *.egg-info
