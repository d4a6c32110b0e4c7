# make demo: a real raw pool to curated shards.   make test: everything that proves it.
PYTHON ?= python3.11
BIN    := .venv/bin
DEMO   := demo
PORT   := 8765

.DEFAULT_GOAL := help
.PHONY: help demo check unit chaos test bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed  ## builds the demo pool, serves it, runs quickstart, prints the funnel
	$(BIN)/clipmill pool demo --out $(DEMO)/pool --port $(PORT)
	@$(BIN)/clipmill pool serve $(DEMO)/pool --port $(PORT) & server=$$!; \
	trap 'kill $$server 2>/dev/null' EXIT INT TERM; \
	$(BIN)/clipmill run quickstart --set pool.path=$(DEMO)/pool/metadata --out $(DEMO)/run && \
	$(BIN)/clipmill funnel --run $(DEMO)/run

check: .venv/installed-dev  ## format, lint, types; seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy metadata pipeline stages

unit: .venv/installed-dev  ## every test but those that take minutes
	$(BIN)/python -m pytest -q -n 2 -m 'not chaos'

chaos: .venv/installed-dev  ## kill -9 at every point, on disk, on S3, on Ray; the README; the demo
	$(BIN)/python -m pytest -q -n 2 -m chaos

test: check unit chaos  ## all of it: what .ci/run calls

bench: .venv/installed-dev  ## every ratio in tests/benchmarks, with the machine's name
	$(BIN)/python -m tests.benchmarks

clean:  ## takes away what make made, but not demo/
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
