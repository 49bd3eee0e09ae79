# make demo: the main job on real text, from nothing.   make test: the tests (CI adds lint, types, smoke).
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?= --constraint constraints-cpu.txt
BIN := $(VENV)/bin
# On 2 cores one thread a process and two processes is faster than the reverse; runs that tests of a file share are
# trained once where the file stays with one process.
PYTEST ?= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
DEMO ?= demo
RECIPES := tnn-tiny hgrn-tiny transformer-tiny

.PHONY: install install-dev demo test lint types smoke clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "subquad needs Python 3.10 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml constraints-cpu.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	@touch $@

demo: install
	@for recipe in $(RECIPES); do \
	    test -f $(DEMO)/$$recipe/metrics.json || $(BIN)/subquad train $$recipe --output $(DEMO)/$$recipe || exit 1; \
	done
	@for recipe in $(RECIPES); do \
	    $(BIN)/subquad extrapolate $(DEMO)/$$recipe --lengths 256,512,1024,2048,4096 || exit 1; \
	    echo; $(BIN)/subquad generate $(DEMO)/$$recipe --prompt 'The function returns' --max-new-tokens 200 --temperature 0.8 || exit 1; echo; \
	done
	@$(BIN)/subquad compare $(addprefix $(DEMO)/,$(RECIPES)) --output $(DEMO)/comparison

test: install-dev
	$(PYTEST)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# Every recipe in the package, shrunk to seconds: what is published must at least run.
smoke: install-dev
	$(BIN)/python tests/smoke_recipes.py

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
