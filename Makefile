# Everything runs in .venv, created from a lock file on first use; see `make help`.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install install-upstream test-faults demo demo-transfer bench test test-fast test-programs test-long test-gpu test-upstream lint lock parity docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install:  ## create the environment; a second call does nothing
	@$(PYTHON) tools/install.py --env $(ENV) --lock requirements/onedl.lock

install-upstream:  ## create the second environment
	@$(PYTHON) tools/install.py --env $(ENV)-upstream --lock requirements/upstream.lock

demo: install  ## pretrain on real images for three minutes and show what it learned
	@$(BIN)/python tools/demo.py

demo-transfer: install  ## fine-tune the demo's checkpoint for three tasks, against training from scratch
	@$(BIN)/python tools/demo_transfer.py

bench: install  ## measure a training step and the loader on this machine
	@mkdir -p work_dirs/benchmark
	@$(BIN)/python tools/benchmark.py step configs/pretrain/bootmae_vitb.py --warmup 1 --repeats 3 \
	  --against mae --json work_dirs/benchmark/step.json
	@echo
	@$(BIN)/python tools/benchmark.py loader configs/pretrain/bootmae_vitb.py --json work_dirs/benchmark/loader.json

test: install  ## run the test suite; about ten minutes on two cores
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-programs: install  ## run whole programs: the demos, the notebook, the wheel, several processes
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "program and not long"

test-faults: install  ## kill runs and damage their files: twenty random tries each (FORM=short: one)
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests/faults $(if $(filter short,$(FORM)),-m "not long",-m "")

test-long: install  ## run what the suite leaves out: larger models, more combinations, all of mmdet's and mmseg's
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m long --ignore tests/faults

test-gpu: install  ## run the tests that need a GPU
	@$(BIN)/python -m pytest -m gpu

test-fast: install  ## run the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow and not fault and not long and not program"

test-upstream: install-upstream  ## run the test suite with the original OpenMMLab distributions
	@$(ENV)-upstream/bin/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: install  ## check style, spelling, types and the layers of the package
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/codespell
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

lock: install  ## update the lock files from requirements/*.in
	@for name in onedl upstream docs; do \
	  $(BIN)/python -m uv --quiet pip compile --universal --python-version 3.10 --generate-hashes \
	    --overrides requirements/overrides.txt --custom-compile-command "make lock" \
	    requirements/$$name.in -o requirements/$$name.lock || exit 1; done

parity: install  ## compare with the numbers of the authors' program
	@for name in tiny_a tiny_b; do $(BIN)/python tools/check_parity.py tests/reference/$$name || exit 1; done

docs:  ## build the site of the documents in work_dirs/site, with all links checked
	@$(PYTHON) tools/install.py --env $(ENV)-docs --lock requirements/docs.lock --no-package
	@$(ENV)-docs/bin/mkdocs build --strict

clean:  ## remove the environments and the files of runs
	rm -rf $(ENV) $(ENV)-upstream $(ENV)-docs work_dirs build dist *.egg-info
