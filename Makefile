# make quickstart   a fresh machine -> .venv, a corpus, a trained model (about ten minutes on two cores)
# make test         the same set-up, then lint, types, the import contract and the tests
#
# PYTHON           the interpreter that makes .venv (3.11 to 3.13)
# TORCH_INDEX_URL  an index that has the build of torch you want, if your default index gives another one
# TEST_WORKERS     processes of the test suite

PYTHON ?= python3
TORCH_INDEX_URL ?=
TEST_WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The environment is made anew when what it is made of changes; a second run finds the stamp and does nothing.
INSTALLED := $(VENV)/.installed

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: quickstart test gpu-test gpu-bench bench doctor lint setup clean

quickstart: setup
	@$(BIN)/pretrain quickstart

test: lint
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not gpu" $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

gpu-test: setup
	@$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

bench: setup
	@$(BIN)/python -m benchmarks.train_step

gpu-bench: setup
	@$(BIN)/python -m benchmarks.train_step --device cuda

doctor: setup
	@$(BIN)/pretrain doctor

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = (3, 11) <= v <= (3, 13); \
	  ok or print("$(PYTHON) is Python %d.%d; 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.12" % v); sys.exit(not ok)' \
	  || { command -v $(PYTHON) > /dev/null || echo "$(PYTHON) was not found; name one: make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
	  || { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (a minute or more at the first time)"
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
