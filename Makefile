# Two commands: `make` rebuilds the studies in miniature, `make test` runs the tests.
PYTHON ?= $(firstword $(foreach p,python3.11 python3,$(if $(shell command -v $(p)),$(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: all env test test-all lint format clean-results
.DEFAULT_GOAL := all

all: env
	$(BIN)/snakemake all
	@$(BIN)/python -c "from pathlib import Path; from ropewalk.study.project import load_plan; \
	p = load_plan(Path('config.yaml'), {}); print('report:', Path(p.report).parent / 'index.html')"

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; \
	sys.exit(None if v == (3, 11) else f'ropewalk is pinned for Python 3.11, found {v[0]}.{v[1]}: run make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)
	@echo "environment: $(VENV) (activate it with: . $(BIN)/activate)"

test: env
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadgroup

test-all: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

clean-results:
	rm -rf results .snakemake
