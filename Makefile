# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# For pip, such as the index of PyTorch's CPU builds: from PyPI, torch on Linux is the CUDA build.
PIP_FLAGS ?=
MINUTES ?= 5
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: help demo test test-gpu fuzz lint types check bench summary ledger doctor clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[dev]"
# It runs on Python 3.11, but its metadata asks for 3.12; all that it needs is installed above.
	$(PIP_INSTALL) --ignore-requires-python --no-deps ttsem
	touch $@

demo: $(STAMP) ## pre-train on synthetic skeletons, from raw files to a report (no data needed)
	$(BIN)/python -m train.run --dataset synthetic --preset tiny --out runs/demo

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-gpu: $(STAMP) ## what needs an NVIDIA GPU; says what it leaves out, and why
	$(BIN)/python -m pytest -rs tests/gpu

lint: $(STAMP) ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy

check: lint types test ## what CI runs

fuzz: $(STAMP) ## damaged inputs to all readers, for MINUTES=5; what is read wrongly is kept in tests/fuzz/found
	$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES)

bench: $(STAMP) ## benchmarks, side by side with the plain way
	$(BIN)/python -m pytest bench/ --benchmark-only

summary: $(STAMP) ## all headline ratios in one run; wants an idle machine
	$(BIN)/python -m bench.summary

ledger: $(STAMP) ## what the kernels cost a GPU: bytes, operations, registers, a modelled bound (needs no GPU)
	$(BIN)/python -m bench.ledger

doctor: $(STAMP) ## versions, devices, what can run and why not
	$(BIN)/python -m fastmc.doctor

clean: ## the virtual environment and caches; runs/ and data/ stay
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
