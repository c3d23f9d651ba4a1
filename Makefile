# One virtual environment, made on first use; every target installs only what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: install demo test lint types unit bench check-gains clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python needs its venv module, on Debian and Ubuntu the package python3-venv." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/kd-tasks demo segmentation

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks

check-gains: $(STAMP)
	$(BIN)/kd-tasks demo segmentation --seeds 3
	$(BIN)/kd-tasks demo classification --seeds 3
	$(BIN)/kd-tasks demo reid --seeds 3
	$(BIN)/kd-tasks demo lanes --seeds 3
	$(BIN)/kd-tasks demo landmarks --seeds 3

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache work_dirs
