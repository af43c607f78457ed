# `make demo` and `make test` are all that is needed; each makes the environment first if it is not there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint types slow install clean pocket conform conform-native bench tables bench-partition bench-fleets

demo: $(VENV)/.ready
	$(BIN)/fedrift demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: test lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

# What takes minutes or a download: SmolLM2-135M, fetched once (93 MB).
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Pretrain the embedded model again (about an hour on two cores): make pocket DATA=folder/of/corpora
pocket: $(VENV)/.ready
	$(BIN)/python scripts/pretrain_pocket.py --data $(DATA) --out pocket-build

# The papers' results, expected against found: about four minutes on one core; docs/conformance.md holds what came.
conform: $(VENV)/.ready
	$(BIN)/fedrift conform published

# FedProx's synthetic data with its sizes as drawn.
conform-native: $(VENV)/.ready
	$(BIN)/fedrift conform native

# The tables that the regimes are held to, dealt again: expected against found.
tables: $(VENV)/.ready
	$(BIN)/fedrift partition tables

# 100,000 documents into 100 clients; on a machine that does nothing else. Writes benchmarks/results/partition.json.
bench-partition: $(VENV)/.ready
	$(BIN)/python benchmarks/partition.py

# What a fleet costs beside training: in process, over Flower's simulation, over SuperNodes on loopback; on an idle machine.
bench-fleets: $(VENV)/.dev
	$(BIN)/python benchmarks/fleets.py

# A round of ours beside a plain transformers + peft loop, on an idle machine.
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/loop.py

install: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"fedrift needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 demo")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

# What the tests, lint and types need beside it, Flower among them.
$(VENV)/.dev: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs demo-report
