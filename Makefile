# `make test` and `make bench` set up whatever they need, then run. They use, in this order:
#   the environment of PYTHON, where given    make test PYTHON=/path/to/python (it must have torch)
#   the active venv or conda environment      if it has torch
#   .venv                                     made here, with the torch that pyproject.toml builds with
# TORCH_INDEX_URL: the package index to take .venv's torch from, such as one of CPU-only builds.
# ARGS: passed on to what runs, as in make test ARGS="-k lstm".

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

TORCH := $(shell sed -n 's/^requires = .*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
HAS_TORCH := import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)

ifndef PYTHON
  ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
  PYTHON := $(if $(ACTIVE),$(shell "$(ACTIVE)/bin/python" -c '$(HAS_TORCH)' 2> /dev/null && echo "$(ACTIVE)/bin/python"))
endif
ifeq ($(PYTHON),)
  PYTHON := .venv/bin/python
  STAMP := .venv/ready
  ENVIRONMENT := .venv/pyvenv.cfg
else
  STAMP := build/ready-$(shell cksum <<< "$(PYTHON)" | cut -d' ' -f1)
  ENVIRONMENT := $(wildcard $(ACTIVE)/pyvenv.cfg)
endif

.PHONY: help test smoke test-all test-clients test-cuda bench report lint format dist cxx-check cuda-check oldest-gpu library clean

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' Makefile | expand -t 14

files = $(foreach name,$(1),tests/$(dir $(name))test_$(notdir $(name)).py)
SMOKE := project/house project/house_csrc nn/constructors nn/wrong_arguments nn/parameters nn/layouts nn/backward nn/parity \
  nn/stack ops/engine ops/refusals ops/registry cuda/persistent

# The second run has the CUDA engine in place of the CPU's, under tests that know nothing of it; none without nvcc.
ON_MACHINE := autograd/transforms nn/parity nn/low_precision ops/lengths_resets
on-machine = PYTHONPATH=tests "$(PYTHON)" -m pytest -p support.on_machine $(call files,$(ON_MACHINE))

test: library $(STAMP)-test ## build, then run the tests (15 minutes)
	"$(PYTHON)" -m pytest $(ARGS)
	$(on-machine) $(ARGS)

smoke: library $(STAMP)-test ## after an edit: what finds most faults soonest (3 minutes)
	"$(PYTHON)" -m fused_rnn verify --quick
	"$(PYTHON)" -m pytest -x $(call files,$(SMOKE)) $(ARGS)

test-all: library $(STAMP)-dev $(STAMP)-clients ## before a release: also what takes many minutes; needs nvcc and clang++
	"$(PYTHON)" -m pytest -m "exhaustive or not exhaustive" $(ARGS)
	$(on-machine) $(ARGS)
	"$(PYTHON)" -m pytest tests/clients $(ARGS)
	"$(PYTHON)" scripts/cxx_check.py
	"$(PYTHON)" scripts/sanitize_check.py
	"$(PYTHON)" scripts/compile_all_archs.py

test-clients: library $(STAMP)-clients ## the layers in packages that use torch.nn's, which pip fetches (2 minutes)
	"$(PYTHON)" -m pytest tests/clients $(ARGS)

test-cuda: library $(STAMP)-test ## all tests of the CUDA kernels, whose PTX is executed on the CPU; needs nvcc
	"$(PYTHON)" -m pytest -m "exhaustive or not exhaustive" tests/ptx tests/cuda $(ARGS)
	$(on-machine) $(ARGS)

bench: library $(STAMP)-bench ## build, then measure for ten minutes (ARGS=--quick: one)
	"$(PYTHON)" -m benchmarks $(ARGS)

report: $(STAMP)-bench ## write README's tables, the page of all peers and the plots from benchmarks/results
	"$(PYTHON)" -m benchmarks report

# The linters are programs of the environment, which need not be active.
lint format: export PATH := $(abspath $(dir $(PYTHON))):$(PATH)

lint: $(STAMP)-dev ## check style and format
	"$(PYTHON)" -m pre_commit run --all-files

format: $(STAMP)-dev ## put style and format right
	ruff check --fix --exit-zero
	ruff format
	git ls-files --cached --others --exclude-standard "*.h" "*.cpp" "*.cuh" "*.cu" | xargs clang-format -i

dist: $(STAMP)-dev ## make sdist and wheel, try each in a fresh environment
	scripts/dist_check.sh "$(PYTHON)" "$(TORCH)"

cxx-check: library ## compile csrc with clang too, and look for two types of one name; needs clang++
	"$(PYTHON)" scripts/cxx_check.py $(CHECKS)

cuda-check: $(STAMP)-dev library ## show the CUDA kernels' registers and occupancy, fail on local memory
	"$(PYTHON)" scripts/cuda_check.py

oldest-gpu: library ## compile some CUDA kernels for the oldest GPUs, which lack most of what Hopper has
	"$(PYTHON)" scripts/compile_all_archs.py --archs 75 -- build/native/persistent/float_forward.cu

library: $(STAMP)-tools ## build fused_rnn/_C.so
	"$(PYTHON)" setup.py --quiet build_ext --inplace

clean: ## remove all that was built; .venv stays
	rm -rf build dist *.egg-info fused_rnn/_C.so .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# A stamp says that the environment has what pyproject.toml asked for when it was made.
$(STAMP)-tools: pyproject.toml $(ENVIRONMENT)
	mkdir -p build
	"$(PYTHON)" -m pip install --quiet "setuptools>=77" ninja
	touch $@

# The library has just been built, so this build finds nothing to do; pip would have hidden its progress.
# The environment's torch stays: if a package wants another one, pip says which and stops.
$(STAMP)-%: pyproject.toml | library
	torch=$$("$(PYTHON)" -c 'from importlib.metadata import version; print(version("torch"))'); \
	"$(PYTHON)" -m pip install --quiet --no-build-isolation -e ".[$*]" "torch==$$torch"
	touch $@

.venv/pyvenv.cfg:
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fused_rnn needs Python 3.10 or newer")'
	python3 -m venv .venv
	.venv/bin/python -m pip install $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$(TORCH)"
