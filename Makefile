# Everything that a clone needs; `make` alone lists it. Nothing is written outside this folder, except that the import
# of Fashion-MNIST may, as root, install Debian's package of it, and then says so.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-hosts faults host-tools lint format bench clean

VENV ?= .venv
DATA ?= data/fashion-mnist
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first Python here that Shoal runs on. An unsupported one named by hand is refused below.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && exit; done; echo python3)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON, VENV=$(VENV), DATA=$(DATA), PIP_ARGS, DEMO_ARGS, TEST_PROCESSES=$(TEST_PROCESSES), TEST_ARGS, BENCH_ARGS"

install: $(INSTALLED) ## Make .venv with Shoal in it (once, and again when pyproject.toml changes)

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): PyTorch and Ray are large, this takes minutes the first time"
	$(BIN)/python -m pip install $(PIP_ARGS) --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "error: Shoal runs on Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo "not there")." \
			"Install one of them, or name it: make install PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no module to make virtual environments with." \
			"On Debian and Ubuntu: apt-get install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)

demo: ## Fetch Fashion-MNIST, train an autoencoder with two DDP workers, measure it, draw what it learned
	+@VENV=$(VENV) DATA=$(DATA) docs/demo.sh $(DEMO_ARGS)

test: $(INSTALLED) ## Run the tests
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) $(TEST_ARGS)

test-slow: $(INSTALLED) ## Run the tests that take many minutes: searches killed again and again, a lost node
	$(BIN)/python -m pytest -m slow $(TEST_ARGS)

# One cluster of several hosts, made of namespaces: it needs root, and what makes them.
HOST_TOOLS := ip tc nft tini nsenter pgrep fsfreeze mkfs.ext4 sshd rsync
HOST_PACKAGES := e2fsprogs iproute2 nftables openssh-server procps rsync tini util-linux

test-hosts: $(INSTALLED) host-tools ## Run the tests on several hosts, made of namespaces (as root; about half an hour)
	$(BIN)/python -m pytest -m '' tests/hosts $(TEST_ARGS)

faults: $(INSTALLED) host-tools ## Let every fault happen three times on several hosts, and write docs/faults.md
	@mkdir -p build
	@rm -f build/faults.jsonl
	FAULTS_TIMES=3 FAULTS_RECORD=build/faults.jsonl FAULTS_PAGE=docs/faults.md \
		$(BIN)/python -m pytest -m '' tests/hosts/test_faults.py $(TEST_ARGS)

host-tools:
	@[ "$$(id -u)" = 0 ] || { echo "error: several hosts on one machine need root: sudo make test-hosts" >&2; exit 2; }
	@for tool in $(HOST_TOOLS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null || { \
			echo "Installing Debian's $(HOST_PACKAGES)"; \
			apt-get update -q && apt-get install -yq --no-install-recommends $(HOST_PACKAGES); exit; }; \
	done

lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) $(DATA)/manifest.json ## Measure samples a second, side by side with a plain PyTorch loop
	$(BIN)/python benchmarks/throughput.py --data $(DATA) $(BENCH_ARGS)

$(DATA)/manifest.json: | $(INSTALLED)
	$(BIN)/shoal data import fashion-mnist --out $(DATA)

clean: ## Remove .venv, caches and builds; data/ and runs/ stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src distributed tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
