# `make study` and `make test` set everything up themselves; a second call reuses .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SITE := $(VENV)/.site
FLOORS := $(VENV)-floors
# What other packages do for us: command lines, checkpoints, corpora, tables, figures, trackers, notebooks.
FLOOR_TESTS := $(patsubst %,tests/test_%.py,versions cli checkpoint commands results mirrors notebooks launch_hostile foreign_files foreign_tokenizers hub conditioned)

.PHONY: setup study test test-slow test-floors lint types docs notebooks

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

setup: $(READY)

study: $(READY)
	$(BIN)/infini-jax study quick

# A file's tests share what they compile, so that one worker has all of them.
test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

test-floors: $(READY)
	$(BIN)/uv venv --quiet --clear --python 3.11 $(FLOORS)
	$(BIN)/uv pip install --quiet --resolution lowest-direct --python $(FLOORS)/bin/python -e '.[dev,mirrors]'
	$(FLOORS)/bin/ruff check .
	LOWEST_VERSIONS=1 $(FLOORS)/bin/python -m pytest -n auto --dist loadfile -m "not slow" $(FLOOR_TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)
	$(BIN)/jupytext --quiet --update --to ipynb notebooks/*.py
	$(BIN)/jupyter-nbconvert --log-level=ERROR --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

$(SITE): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $(SITE)

docs: $(SITE)
	$(BIN)/python -m docs.site build
	$(BIN)/zensical build --config-file build/site.yml
