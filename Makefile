# Two commands on a fresh machine: `make demo` and `make test`. Both set up the environment in .venv themselves.
# pip reads its own environment variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS): see the README on torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find runtime train export benchmarks -name '*.py' -o -name '*.toml') $(wildcard runtime/models/*/*) pyproject.toml
# Two processes of tests on two cores: threads of PyTorch would wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: demo test weights folds clean

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

# Weights from the scans in weights/scans.csv, by two runs of one recipe. The first never sees one patient, for an honest figure. The
# second learns from all of them and becomes the default model. The steps take two cores two hours for each run; a GPU does many
# more: make weights STEPS=12000. A run that was interrupted is resumed; other steps are other folders.
# Before new weights are shipped, raise the version in weights/card.toml and read its texts.
HELD_OUT := P14
STEPS := 2400
DONORS := ../shared/data/lit_masks
DEFAULT := runtime/models/default
HELD = weights/held-out-$(HELD_OUT)-$(STEPS)
ALL = weights/all-$(STEPS)
RESUME = $(if $(wildcard $(1)/run.json),--resume)
# Tensors that keep their memory save a tenth of the time.
TRAIN = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 $(BIN)/lesionrt train weights/scans.csv \
	--set donors=$(DONORS) --set steps=$(STEPS)
weights: $(VENV)/.test-tools
	$(TRAIN) -o $(HELD) --without $(HELD_OUT) $(call RESUME,$(HELD))
	$(BIN)/lesionrt evaluate weights/scans.csv --patient $(HELD_OUT) --model $(HELD)/checkpoint.pt -o $(HELD)/evaluation --force
	$(TRAIN) -o $(ALL) $(call RESUME,$(ALL))
	$(BIN)/lesionrt export $(ALL)/checkpoint.pt -o $(DEFAULT) --force --card weights/card.toml \
		--precision fp32 --precision fp16 --precision bf16 --input ../shared/data/lit/p19/flair.nii.gz
	$(BIN)/lesionrt evaluate weights/scans.csv --model $(DEFAULT) --backend cpu -o $(ALL)/evaluation --force
	$(BIN)/python weights/card.py $(HELD) $(ALL) $(DEFAULT) README.md

# Every patient held out once, for figures of all four: some nine hours on two cores.
folds: $(VENV)/.test-tools
	$(BIN)/lesionrt crossval weights/scans.csv -o weights/folds --set donors=$(DONORS) --set steps=$(STEPS)

clean:
	rm -rf $(VENV) build dist demo *.egg-info
