# make quickstart   a fresh machine -> .venv, a corpus, a trained model (about ten minutes on two cores)
# make test         the same set-up, then lint, types, the import contract and the tests
#
# PYTHON           the interpreter that makes .venv (3.11 to 3.13)
# TORCH_INDEX_URL  an index that has the build of torch you want, if your default index gives another one
# TEST_WORKERS     processes of the test suite; one more than two cores, for many tests wait

PYTHON ?= python3
TORCH_INDEX_URL ?=
TEST_WORKERS ?= 3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The environment is made anew when what it is made of changes; a second run finds the stamp and does nothing.
INSTALLED := $(VENV)/.installed

SLURM_TOOLS := slurmctld slurmd sbatch munged shellcheck ip nsenter unshare setpriv pkill
SLURM_PACKAGES := slurm-wlm munge shellcheck iproute2 util-linux procps

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: quickstart test slurm-test gpu-test gpu-bench bench doctor lint setup slurm-tools clean

quickstart: setup
	@$(BIN)/pretrain quickstart

test: lint slurm-tools
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not gpu" $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

slurm-test: setup slurm-tools
	@$(BIN)/python -m pytest -m slurm $(PYTEST_ARGS) tests/slurm

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

# The tests of tests/slurm run on a Slurm of their own; only root can install it or bring it up.
slurm-tools:
	@for tool in $(SLURM_TOOLS); do PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool > /dev/null || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
	  echo "the Slurm tests are skipped without$$missing; as root on Debian or Ubuntu: apt-get install $(SLURM_PACKAGES)"; exit 0; fi; \
	echo "installing what the Slurm tests lack:$$missing"; \
	install="apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 $(SLURM_PACKAGES)"; \
	export DEBIAN_FRONTEND=noninteractive; \
	$$install > /dev/null 2>&1 || { apt-get update -qq && $$install > /dev/null; }

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
