# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Installed so far: what training needs, what tests need besides, and what the site needs.
STAMP  := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs
# For pip, such as the index of PyTorch's CPU builds: from PyPI, torch on Linux is the CUDA build.
PIP_FLAGS ?=
# Bytecode is made of what is imported, when it is.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

# What a bare machine with PyTorch for Python 3.12 may lack: brought there in this folder, where there is no network.
WHEELS ?= wheels
BARE   := tyro docstring_parser typeguard typing_extensions nvtx
PLATFORMS := manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
# For bench.gpu: --minutes 8, --only a d, --rehearse, --help.
GPU_FLAGS ?=
# Of fuzz and soak.
MINUTES ?= 5

.PHONY: help demo ready test quick test-gpu gpu wheels fuzz lint types docs check bench summary ledger doctor soak mutants clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[cpu]"
	touch $@

$(DEV_STAMP): $(STAMP)
	$(PIP_INSTALL) -e ".[dev]"
# It runs on Python 3.11, but its metadata asks for 3.12; all that it needs is installed above.
	$(PIP_INSTALL) --ignore-requires-python --no-deps ttsem
	touch $@

demo: $(STAMP) ## pre-train on synthetic skeletons, from raw files to a report (no data needed)
	$(BIN)/python -m train.run --dataset synthetic --preset tiny --epochs 60 --bank-size 1024 --out runs/demo

# Of make ready: the file of docs/model-card.md.
HDM05 ?= hdm05_11.npz

ready: $(STAMP) ## make fastmc/ready/small-v1.safetensors anew, from HDM05=FILE and the synthetic set: docs/model-card.md
	test -d data/synthetic || $(BIN)/python -m train.prepare synthetic --out data/synthetic
	test -d data/hdm05 || $(BIN)/python -m train.prepare npz --file $(HDM05) --out data/hdm05 --train split=train
	$(BIN)/python -m train.prepare join --stores data/synthetic data/hdm05 --out data/ready --overwrite
	$(BIN)/python -m train.run --dataset ready --preset tiny --encoder 2x128 --bank-size 512 --attack-norm 0.5 \
		--epochs 120 --milestones 100 --out runs/ready
	$(BIN)/python -m train.export --run runs/ready --to safetensors --out fastmc/ready/small-v1.safetensors --overwrite

# Of two processes each with one thread; more of them where there are more cores: TEST_FLAGS="-n 8".
TEST_FLAGS ?= -n 2

test: $(DEV_STAMP) ## all tests
	$(BIN)/python -m pytest $(TEST_FLAGS) --dist worksteal

quick: $(DEV_STAMP) ## tests in a minute: units, and a short run of every method
	$(BIN)/python -m pytest $(TEST_FLAGS) --dist worksteal -m "quick or not (slow or program or compiler or shared or gpu)"

test-gpu: $(DEV_STAMP) ## what needs an NVIDIA GPU; says what it leaves out, and why
	$(BIN)/python -m pytest -rs tests/gpu

# Without a virtual environment it takes the machine's own PyTorch, and the wheels beside it.
gpu: ## check and measure everything on an NVIDIA GPU, also a bare one without a network: docs/gpu/README.md
ifneq ($(wildcard $(BIN)/python),)
	$(BIN)/python -m bench.gpu $(GPU_FLAGS)
else
	test ! -d $(WHEELS) || $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade \
		--target $(WHEELS)/site $(WHEELS)/*.whl
	PYTHONPATH=$(abspath $(WHEELS))/site$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m bench.gpu $(GPU_FLAGS)
endif

wheels: $(DEV_STAMP) ## what such a machine lacks, for Python 3.12, into wheels/
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps -c constraints.txt \
		--python-version 3.12 --implementation cp $(PLATFORMS:%=--platform %) --dest $(WHEELS) $(BARE)

lint: $(DEV_STAMP) ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP) ## mypy
	$(BIN)/mypy

$(DOCS_STAMP): $(DEV_STAMP)
	$(PIP_INSTALL) -e ".[docs]"
	touch $@

# Material says on every build that there will be another MkDocs.
docs: $(DOCS_STAMP) ## these pages and the API as a site, site/index.html; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

check: lint types docs test ## what CI runs

fuzz: $(DEV_STAMP) ## damaged inputs to all readers, for MINUTES=5; what is read wrongly is kept in tests/fuzz/found
	$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES)

bench: $(DEV_STAMP) ## benchmarks, side by side with the plain way
	$(BIN)/python -m pytest bench/ --benchmark-only

summary: $(DEV_STAMP) ## all headline ratios in one run; wants an idle machine
	$(BIN)/python -m bench.summary

ledger: $(DEV_STAMP) ## what the kernels cost a GPU: bytes, operations, registers, a modelled bound (needs no GPU)
	$(BIN)/python -m bench.ledger

doctor: $(STAMP) ## versions, devices, what can run and why not
	$(BIN)/python -m fastmc.doctor

soak: $(DEV_STAMP) ## kill the program at random moments and compare what it ends with; MINUTES=10
	$(BIN)/python tests/soak.py --minutes $(MINUTES)

mutants: $(DEV_STAMP) ## plant faults in the code and count those that the tests catch; an hour, or hours
	$(BIN)/python -m tests.mutants --jobs 2

clean: ## the virtual environment and caches; runs/ and data/ stay
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
