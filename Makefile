# Both commands make their own environment in .venv; they need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN = .venv/bin
DEMO ?=

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/salus demo $(DEMO)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,dicom,ray,tracking]'
	touch $@

clean:
	rm -rf .venv salus-demo
