# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test check results pictures clean

setup: $(STAMP)

# requirements.lock pins every package; torch 2.13.0 there is the CPU build where an index offers one.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	$(BIN)/bytefit run pocket --out runs/demo --resume
	$(BIN)/bytefit audit runs/demo

# Two processes with a thread each: most tests keep only one core busy.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(STAMP)
	$(BIN)/python benchmarks/render.py

# Needs Chromium, and finished runs.
RUNS ?= runs/demo
pictures: $(STAMP)
	$(BIN)/python benchmarks/pictures.py $(RUNS)

clean:
	rm -rf $(VENV) runs/demo .pytest_cache .mypy_cache .ruff_cache build *.egg-info
