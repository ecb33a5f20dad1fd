# Two commands on a fresh machine: `make demo` and `make test`. Both set up the environment in .venv themselves.
# pip reads its own environment variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS): see the README on torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find runtime train export benchmarks -name '*.py' -o -name '*.toml') $(wildcard runtime/models/*/*) pyproject.toml
# Two processes of tests on two cores: threads of PyTorch would wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: demo test weights clean

demo: $(VENV)/.installed
	$(BIN)/lesionrt phantom -o demo --force
	$(BIN)/lesionrt segment demo/phantom000_flair.nii.gz -o demo --overlay --force

test: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p lesionrt.runtime
	$(ONE_THREAD) $(BIN)/pytest --import-mode=importlib --numprocesses 2 --dist loadfile --no-loadscope-reorder tests
	$(BIN)/pytest --import-mode=importlib --doctest-modules --pyargs lesionrt.runtime lesionrt.train lesionrt.export lesionrt.benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package as a user gets it: built and installed, not linked to this folder.
$(VENV)/.installed: $(BIN)/python $(SOURCES) constraints.txt
	rm -rf build
	$(PIP) install --quiet --no-compile --constraint constraints.txt '.[cpu]'
	rm -rf build
	touch $@

# Everything at once: what a demo needs is among it.
$(VENV)/.test-tools: $(BIN)/python $(SOURCES) constraints.txt
	rm -rf build
	$(PIP) install --quiet --no-compile --constraint constraints.txt '.[dev]'
	rm -rf build
	touch $(VENV)/.installed $@

# Weights from the scans in weights/scans.csv. The first run never sees one patient, for an honest figure. The second goes on from
# there with all patients: what it knows of the others it need not learn again. The mean of both becomes the default model. The
# steps are those of a CPU; a GPU does many more: make weights HELD_STEPS=6000 ALL_STEPS=3000. Tensors that keep their memory save a
# tenth of the time.
HELD_OUT := P14
HELD_STEPS := 800
ALL_STEPS := 300
DONORS := ../shared/data/lit_masks
DEFAULT := runtime/models/default
RESUME = $(if $(wildcard $(1)/run.json),--resume)
TRAIN = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 $(BIN)/lesionrt train weights/scans.csv --set donors=$(DONORS)
weights: $(VENV)/.test-tools
	$(TRAIN) -o weights/held-out --without $(HELD_OUT) --set steps=$(HELD_STEPS) $(call RESUME,weights/held-out)
	$(BIN)/lesionrt evaluate weights/scans.csv --patient $(HELD_OUT) --model weights/held-out/checkpoint.pt \
		-o weights/held-out/evaluation --force
	$(TRAIN) -o weights/all --start weights/held-out/checkpoint.pt --set steps=$(ALL_STEPS) --set learning_rate=5e-4 \
		--set warm_up=10 --set frozen_norms=1.0 --set seed=1 $(call RESUME,weights/all)
	$(BIN)/python weights/mean.py weights/held-out/checkpoint.pt weights/all/checkpoint.pt weights/mean.pt
	$(BIN)/lesionrt export weights/mean.pt -o $(DEFAULT) --force --card weights/card.toml \
		--precision fp32 --precision fp16 --precision bf16
	$(BIN)/lesionrt evaluate weights/scans.csv --model $(DEFAULT) -o weights/all/evaluation --force
	$(BIN)/python weights/card.py weights/held-out weights/all $(DEFAULT) README.md

clean:
	rm -rf $(VENV) build dist demo *.egg-info
