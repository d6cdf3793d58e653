# The front door for people who work on vmsession. `make help` lists what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard core_service/engine/native/*.[ch]) $(wildcard core_service/engine/native/*.py) \
	$(wildcard dataspace/*.c) $(wildcard dataspace/native/*.h) proto/vcpu_page.h setup.py pyproject.toml

include deploy/install.mk

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench soak hostile table man proto lock clean

help:
	@echo "make demo    boot Linux and small guests against a private core, then audit every dataspace"
	@echo "make test    run the tests"
	@echo "make lint    ruff, import-linter, buf"
	@echo "make types   mypy --strict"
	@echo "make bench   measure the cost of exits; writes bench.json"
	@echo "make soak    long campaigns, an hour and a half; writes soak.json"
	@echo "make hostile those of them that attack; writes hostile.*.json"
	@echo "make table   write docs/engines.md: what each engine claims to do"
	@echo "make proto   generate the gRPC code again"
	@echo "make man     write docs/man: the manual pages, from the commands"
	@echo "make lock    pin the dependencies again"
	@echo "make install     for a service: beneath PREFIX=/usr/local, see docs/operations.md"
	@echo "make uninstall   all of that but the policy and the audit log"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "vmsession is built with Python 3.11; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock | $(BIN)/python
	@echo "installing the dependencies ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "installing the development tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.vmsession: $(VENV)/.runtime $(NATIVE)
	@command -v $${CC:-gcc} >/dev/null || { echo "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev python3-dev)" >&2; exit 1; }
	@echo "building vmsession ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(VENV)/.vmsession
	@$(BIN)/python -m examples.demo

test: $(VENV)/.dev $(VENV)/.vmsession
	@$(BIN)/python -m tests.libx86emu
	@$(BIN)/python -m pytest

lint: $(VENV)/.dev $(VENV)/.vmsession
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb

types: $(VENV)/.dev $(VENV)/.vmsession
	$(BIN)/mypy

bench: $(VENV)/.vmsession
	@$(BIN)/python tests/benchmarks/bench.py

soak: $(VENV)/.dev $(VENV)/.vmsession
	@$(BIN)/python -m pytest -m soak --timeout 0

hostile: $(VENV)/.dev $(VENV)/.vmsession
	@$(BIN)/python -m tests.libx86emu
	@$(BIN)/python -m pytest -m soak --timeout 0 tests/hostile tests/engine/test_soft_fuzz.py

table: $(VENV)/.dev $(VENV)/.vmsession
	@$(BIN)/python -m tests.conformance.engine_table

proto: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python proto/generate.py

man: $(VENV)/.vmsession
	@$(BIN)/python -m docs.man.generate

lock: $(VENV)/.dev
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --extra metrics --output-file requirements.lock requirements.in pyproject.toml
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info core_service/engine/native/bin dataspace/_page*.so bench.json soak.json hostile.*.json
