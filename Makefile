# `make test` and `make bench` set up whatever they need in .venv, which is made here, with the torch that pyproject.toml
# builds with. No other environment is changed, active or not, unless PYTHON names it:
#   make test PYTHON=/path/to/python          uses that environment, which must have torch, and installs the extras there
# TORCH_INDEX_URL: the package index to take .venv's torch from, such as one of CPU-only builds.
# ARGS: passed on to what runs, as in make test ARGS="-k lstm".

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

TORCH := $(shell sed -n 's/^requires = .*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

ifeq ($(PYTHON),)
  PYTHON := .venv/bin/python
  STAMP := .venv/ready
  ENVIRONMENT := .venv/pyvenv.cfg
  ACTIVE := $(filter-out $(CURDIR)/.venv,$(or $(VIRTUAL_ENV),$(CONDA_PREFIX)))
  ifneq ($(and $(ACTIVE),$(filter-out help clean,$(MAKECMDGOALS))),)
    $(info make uses .venv; to use the active environment, and to install there what is lacking, add PYTHON="$(ACTIVE)/bin/python")
  endif
else
  STAMP := build/ready-$(shell cksum <<< "$(PYTHON)" | cut -d' ' -f1)
  ENVIRONMENT := $(wildcard $(dir $(PYTHON))../pyvenv.cfg)
endif

.PHONY: help test smoke test-all test-clients test-cuda bench report docs docs-serve docs-links lint format dist wheel torch-matrix aarch64-check cxx-check cuda-check oldest-gpu library clean

help: ## show this list
	@sed -nE 's/^([a-z0-9-]+):.*## /\1\t/p' Makefile | expand -t 14

files = $(foreach name,$(1),tests/$(dir $(name))test_$(notdir $(name)).py)
SMOKE := project/house project/house_csrc nn/constructors nn/wrong_arguments nn/parameters nn/layouts nn/backward nn/parity \
  nn/stack ops/engine ops/refusals ops/registry cuda/persistent

# The second run has the CUDA engine in place of the CPU's, under tests that know nothing of it; none without nvcc.
ON_MACHINE := autograd/transforms nn/parity nn/low_precision ops/lengths_resets
# The files of tests are spread over processes, one for each core.
pytest = "$(PYTHON)" -m pytest -n auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder
on-machine = PYTHONPATH=tests $(pytest) -p support.on_machine $(call files,$(ON_MACHINE))

test: library $(STAMP)-test ## build, then run the tests (twenty minutes)
	$(pytest) $(ARGS)
	$(on-machine) $(ARGS)

smoke: library $(STAMP)-test ## after an edit: what finds most faults soonest (3 minutes)
	"$(PYTHON)" -m fused_rnn verify --quick
	$(pytest) -x $(call files,$(SMOKE)) $(ARGS)

test-all: library $(STAMP)-dev $(STAMP)-clients ## before a release: also what takes many minutes; needs nvcc and clang++
	$(pytest) -m "exhaustive or not exhaustive" $(ARGS)
	$(on-machine) $(ARGS)
	"$(PYTHON)" -m pytest tests/clients $(ARGS)
	"$(PYTHON)" scripts/cxx_check.py
	"$(PYTHON)" scripts/sanitize_check.py
	"$(PYTHON)" scripts/compile_all_archs.py

test-clients: library $(STAMP)-clients ## the layers in packages that use torch.nn's, which pip fetches (2 minutes)
	"$(PYTHON)" -m pytest tests/clients $(ARGS)

test-cuda: library $(STAMP)-test ## all tests of the CUDA kernels, whose PTX is executed on the CPU; needs nvcc
	$(pytest) -m "exhaustive or not exhaustive" tests/ptx tests/cuda $(ARGS)
	$(on-machine) $(ARGS)

bench: library $(STAMP)-bench ## build, then measure (less with ARGS=--quick, more with --full; --help: how long)
	"$(PYTHON)" -m benchmarks $(ARGS)

report: $(STAMP)-bench ## write the README's summary, the pages of figures and the plots from benchmarks/results
	"$(PYTHON)" -m benchmarks report

# SPHINX_OPTIONS are such as -E, to read all pages anew. FUSED_RNN_DOCS_ONLINE=1 links torch's and Python's references.
SITE := build/docs
sphinx = "$(PYTHON)" -m sphinx -q -W --keep-going -d $(SITE)/doctrees $(SPHINX_OPTIONS)

docs: library $(STAMP)-docs ## build the documentation, warnings are errors, and run its snippets
	$(sphinx) -b html docs $(SITE)/html
	@echo "built: $(SITE)/html/index.html"
	"$(PYTHON)" -m pytest -q tests/project/test_docs.py $(ARGS)

docs-serve: docs ## show the documentation on http://localhost:8000
	"$(PYTHON)" -m http.server --bind localhost --directory $(SITE)/html 8000

docs-links: library $(STAMP)-docs ## ask the network whether the documentation's external links are alive
	$(sphinx) -b linkcheck docs $(SITE)/links

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

wheel: library $(STAMP)-dev ## make the wheel alone, for every Linux since glibc 2.28, in build/wheel
	rm -rf build/wheel build/lib build/lib.* build/bdist.*
	"$(PYTHON)" setup.py --quiet bdist_wheel --dist-dir build/wheel/plain
	"$(PYTHON)" scripts/manylinux.py build/wheel/plain/*.whl build/wheel

torch-matrix: wheel ## try that wheel beside each torch and Python that can be had (minutes each); not in CI
	"$(PYTHON)" scripts/torch_matrix.py build/wheel/*.whl $(ARGS)

# What it fetches and builds stays in build/aarch64.
aarch64-check: $(STAMP)-dev ## make the wheel for aarch64 and run it in an emulator (an hour, gigabytes); not in CI
	"$(PYTHON)" scripts/aarch64_check.py build/aarch64 $(ARGS)

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
