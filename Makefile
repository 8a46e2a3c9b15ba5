# make demo   segments the synthetic case that comes along and says which files it wrote
# make test   lints and runs all tests
# make lint   checks style, types, spelling and the arrows between rooms
# make docs   builds the documentation in build/docs
# make coverage   runs all tests and prints which share of the library they reach
# All work in .venv (or VENV=…), made with PYTHON; nothing outside this folder is changed.

PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= demo-output
# Processes that test; a file of tests stays in one of them.
WORKERS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint docs coverage clean

demo: $(VENV)/.installed
	$(BIN)/spinesegai sample --quiet --output $(OUTPUT)
	$(BIN)/spinesegai segment $(OUTPUT)/synthetic_spine.nii.gz --preview --measurements --report

test: $(VENV)/.installed-for-tests lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile Testing

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

coverage: $(VENV)/.installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --cov SpineSegAILib Testing

docs: $(VENV)/.installed-for-docs
	$(BIN)/python Testing/Documentation/generate.py
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=Testing/Documentation $(BIN)/mkdocs build --quiet --strict --config-file Testing/Documentation/mkdocs.yml

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10; say: make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Editable, so that only a change of what is required installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-for-tests: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e '.[test,slicer]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-for-docs: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(OUTPUT) build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
