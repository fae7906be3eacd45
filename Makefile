# Everything sets itself up first. Needs Python >= 3.11 and make; the tests against Apache Kafka also Java 17
# and Maven.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test check bench lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, then detect on two bundled clips through an embedded broker (about a minute)"
	@echo "make test    set up, then run all tests (real Kafka included)"
	@echo "make check   formatting, lint, types"
	@echo "make bench   set up with torch, then measure against a straightforward baseline"
	@echo "make lock    resolve dependencies anew into requirements*.lock (needs uv)"
	@echo "make clean   remove everything that make made"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "streamer needs Python 3.11 or newer; say which: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/streamer demo

test: setup
	$(BIN)/pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.bench-ready: requirements-bench.lock $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

bench: $(VENV)/.bench-ready
	$(BIN)/python build_engines.py --target openvino --precision int8
	$(BIN)/python bench/throughput.py

lock:
	uv lock --upgrade
	uv export --quiet --no-emit-project --no-annotate --no-header --extra dev -o requirements.lock
	uv export --quiet --no-emit-project --no-annotate --no-header --extra dev --extra train -o requirements-bench.lock
	rm uv.lock

clean:
	rm -rf $(VENV) .cache engines/untrained engines/compiled
