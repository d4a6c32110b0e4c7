# make demo: a raw pool to curated shards and what they are worth.   make test: all that proves it.
PYTHON ?= $(shell for it in python3.11 python3.12 python3.13 python3; do \
	$$it -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>&- && echo $$it && break; done)
BIN    := .venv/bin
DEMO   := demo
PORT   := 8765
PATHS  := --set pool.path=$(DEMO)/pool/metadata --set trusted.path=$(DEMO)/pool/trusted/metadata \
	$(foreach arm,raw curated,--set $(arm)_scores.tasks=$(DEMO)/pool/eval)

.DEFAULT_GOAL := help
.PHONY: help demo check unit chaos vllm test bench docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python from 3.11 on. Install one, as in" \
	"'apt install python3.12-venv' or 'brew install python', or name it: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[pool]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'clip-benchmark>=1.6'  # without 100 MB for captioning
	touch $@

demo: .venv/installed  ## pool, quickstart, and what models trained on raw and curated rows can do
	$(BIN)/clipmill pool demo --out $(DEMO)/pool --port $(PORT)
	@$(BIN)/clipmill pool serve $(DEMO)/pool --port $(PORT) & server=$$!; \
	trap 'kill $$server 2>/dev/null' EXIT INT TERM; \
	$(BIN)/clipmill run quickstart $(PATHS) --out $(DEMO)/run && \
	$(BIN)/clipmill funnel --run $(DEMO)/run && \
	$(BIN)/clipmill pool score $(DEMO)/pool --run $(DEMO)/run > $(DEMO)/caught.md && \
	$(BIN)/clipmill report --run $(DEMO)/run --baseline raw --out $(DEMO)/report.html

check: .venv/installed-dev  ## format, lint, types; seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy metadata pipeline stages clipmill.py

unit: .venv/installed-dev  ## every test but those that take minutes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not chaos and not vllm' --durations 30

chaos: .venv/installed-dev  ## kill -9 at every point, on disk, on S3, on Ray; the README; the demo
	$(BIN)/python -m pytest -q -n 2 -m chaos --durations 60 $$(grep -rl 'mark[.]chaos' tests)

vllm: .venv/installed-dev  ## a real vLLM server on the CPU, with tiny models made for it; gigabytes
	$(BIN)/python -m pytest -q -m vllm --durations 12

test: check unit chaos  ## all of it: what .ci/run calls

bench: .venv/installed-dev  ## a table: each claim with a benchmark, measured small; a quarter of an hour
	$(BIN)/python -m tests.benchmarks

docs: .venv/installed  ## docs/stages, from the files of the stages
	$(BIN)/clipmill stages --docs docs/stages

clean:  ## takes away what make made, but not demo/
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
