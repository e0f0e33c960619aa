# Everything a newcomer needs: `make demo` and `make test` install what they need first.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := dev,metaworld
EPISODES ?= 15
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

install: $(STAMP) ## create .venv with the package, editable, and every extra the tests need

# The stamp is written last: an interrupted installation starts again.
$(STAMP): pyproject.toml constraints.txt
	@command -v python3 >/dev/null || { echo "make: python3 (3.11 or newer) is missing" >&2; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: python3 is $$(python3 -V | cut -d' ' -f2), 3.11 or newer is needed" >&2; exit 1; }
	@python3 -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: python3 lacks the venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@test -x $(PY) || python3 -m venv $(VENV)
	@echo "installing pinned packages into $(VENV)"
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt hatchling editables || \
		{ echo "make: packages cannot be installed: pip needs its package index for the first run" >&2; exit 1; }
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]' || \
		{ echo "make: packages cannot be installed: pip needs its package index for the first run" >&2; exit 1; }
	@touch $@

demo: $(STAMP) ## evaluate the bundled checkpoints and print the table (EPISODES=15)
	@$(PY) scripts/demo.py --episodes $(EPISODES)

test: $(STAMP) ## run the whole test suite that needs no GPU
	@$(PY) -m pytest

lint: $(STAMP) ## check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(STAMP) ## put files into the project's format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

types: $(STAMP) ## check types
	@$(PY) -m pyright

clean: ## remove .venv, caches and results
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis runs
