# Two commands on a fresh machine: `make demo` and `make test`. Both set up the environment in .venv themselves.
# pip reads its own environment variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS): see the README on torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find runtime train export benchmarks -name '*.py') pyproject.toml
# What the default model is made of: when it changes, the model is made again.
MODEL_SOURCES := $(wildcard train/*.py export/*.py) runtime/bundle.py runtime/prepare.py runtime/geometry.py runtime/phantom.py

.PHONY: demo test clean

demo: $(VENV)/.model
	$(BIN)/lesionrt phantom -o demo --force
	$(BIN)/lesionrt segment demo/phantom000_flair.nii.gz -o demo --overlay --force

test: $(VENV)/.test-tools $(VENV)/.model
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p lesionrt.runtime
	$(BIN)/pytest --import-mode=importlib tests
	$(BIN)/pytest --import-mode=importlib --doctest-modules --pyargs lesionrt.runtime lesionrt.train lesionrt.export lesionrt.benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package as a user gets it: built and installed, not linked to this folder.
$(VENV)/.installed: $(BIN)/python $(SOURCES) constraints.txt
	rm -rf build
	$(PIP) install --quiet --constraint constraints.txt '.[cpu,export]'
	$(PIP) install --quiet --no-deps --force-reinstall .
	rm -rf build
	touch $@

$(VENV)/.test-tools: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt '.[dev]'
	rm -rf build
	touch $@

# Until there are trained weights, the default model is the paper's network with random ones.
$(VENV)/.model: $(MODEL_SOURCES) | $(VENV)/.installed
	$(BIN)/lesionrt untrained -o $(VENV)/untrained.pt --force
	$(BIN)/lesionrt export $(VENV)/untrained.pt --force \
		-o "$$($(BIN)/python -c 'from lesionrt.runtime.segmenter import DEFAULT_MODEL; print(DEFAULT_MODEL)')"
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info
