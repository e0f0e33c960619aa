# Everything a newcomer needs: `make demo` and `make test` install what they need first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
LEROBOT ?= 0.6.1
LEROBOT_VENV := .venv-lerobot-$(LEROBOT)
ifeq ($(LEROBOT),0.6.1)
LEROBOT_TYPES := $(PY) -m pyright -p tests/with_lerobot
else ifeq ($(LEROBOT),0.4.4)
LEROBOT_PATH := PYTHONPATH='$(CURDIR)/tests/with_lerobot/site'
else
$(error LEROBOT is $(LEROBOT), and what is tested is 0.6.1 and 0.4.4)
endif
LEROBOT_EXTRAS := core-scripts,diffusion,evaluation,multi-task-dit,pusht,training
EDGE := .venv-edge
WHEEL = rm -f runs/edge/*.whl && $(PY) -m hatchling build -t wheel -d runs/edge >/dev/null
SUITES := .venv-suites
EXTRAS := all,dev,docs
CONSTRAINTS := $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)
PIP := pip install -q --disable-pip-version-check -c $(CONSTRAINTS)
LEROBOT_PIP := pip install -q --disable-pip-version-check -c tests/with_lerobot/constraints-0.6.1.txt
NO_PIP = { echo "make: packages cannot be installed: pip needs its package index for the first run" >&2; exit 1; }
EPISODES ?= 15
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install interpreter browser demo test lerobot edge suites docs dist proto lint format types clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

install: $(STAMP) ## create .venv with the package, editable, and every extra the tests need

# A Python or a torch that was asked for is the one that runs, or nothing does.
interpreter:
ifdef TORCH
	@test ! -e $(STAMP) || $(PY) -c 'from importlib.metadata import version; exit(version("torch").split("+")[0] != "$(TORCH)")' || \
		{ echo "make: $(VENV) has another torch than $(TORCH): \`make clean\` first" >&2; exit 1; }
endif
ifeq ($(origin PYTHON),command line)
	@test ! -x $(PY) || test "$$($(PYTHON) -V)" = "$$($(PY) -V)" || \
		{ echo "make: $(VENV) has $$($(PY) -V), not $$($(PYTHON) -V): \`make clean\` first" >&2; exit 1; }
endif

# The stamp is written last: an interrupted installation starts again.
$(STAMP): pyproject.toml constraints.txt | interpreter
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) (3.11 or newer) is missing" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is $$($(PYTHON) -V | cut -d' ' -f2), 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: $(PYTHON) lacks the venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV)"
	@test -z '$(TORCH)' || sed 's/^torch==.*/torch==$(TORCH)/; /^setuptools==/d; /^triton/d' constraints.txt >$(CONSTRAINTS)
	@$(PY) -m $(PIP) hatchling editables || $(NO_PIP)
	@$(PY) -m $(PIP) --no-build-isolation -e '.[$(EXTRAS)]' || $(NO_PIP)
	@$(PY) scripts/maintenance/browser.py || true
	@$(PY) -c 'from asd_policy.samplers.compiled import ROUNDS, STEPS, load_kernels; load_kernels(STEPS), load_kernels(ROUNDS)'
	@touch $@

browser: $(STAMP) ## install a Chromium for the tests of report.html, where `make install` could not
	@$(PY) scripts/maintenance/browser.py

demo: $(STAMP) ## evaluate the bundled checkpoints and print the table (EPISODES=15)
	@$(PY) scripts/demo.py --episodes $(EPISODES)

test: $(STAMP) ## run the whole test suite that needs no GPU (PYTHON=python3, TORCH=the pinned one)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal

lerobot: $(LEROBOT_VENV)/.installed ## test with the lerobot package, in a .venv-lerobot-… of its own (LEROBOT=0.6.1)
	@$(LEROBOT_TYPES)
	@OMP_NUM_THREADS=1 $(LEROBOT_PATH) $(LEROBOT_VENV)/bin/python -m pytest tests/with_lerobot

edge: $(EDGE)/.installed ## test the wheel without PyTorch, in a .venv-edge of its own, on a policy that is exported first
	@$(WHEEL)
	@$(EDGE)/bin/python -m $(PIP) --force-reinstall --no-deps runs/edge/*.whl
	@$(EDGE)/bin/python -m pip --disable-pip-version-check check
	@OMP_NUM_THREADS=1 $(PY) tests/without_torch/prepare.py runs/edge
	@ASD_EDGE_FILES='$(CURDIR)/runs/edge' $(EDGE)/bin/pytest -q -c /dev/null --rootdir=tests/without_torch \
		--confcutdir=tests/without_torch -p no:cacheprovider tests/without_torch

suites: $(SUITES)/.installed ## test the adapters of robosuite and gym-aloha, in a .venv-suites of its own (minutes)
	@OMP_NUM_THREADS=1 MUJOCO_GL=egl $(SUITES)/bin/python -m pytest --noconftest -k 'Robosuite or Aloha' \
		tests/envs/test_envs.py tests/envs/test_suites.py

# robosuite is installed without its dependencies: for keyboards it would have evdev compiled, which simulating does not need.
$(SUITES)/.installed: pyproject.toml constraints.txt
	@test -x $(SUITES)/bin/python || $(PYTHON) -m venv $(SUITES)
	@echo "installing robosuite and gym-aloha into $(SUITES)"
	@$(SUITES)/bin/python -m $(PIP) hatchling editables pytest 'gymnasium[mujoco]' gym-aloha numba opencv-python \
		termcolor || $(NO_PIP)
	@$(SUITES)/bin/python -m $(PIP) --no-build-isolation --no-deps robosuite -e . || $(NO_PIP)
	@touch $@

$(EDGE)/.installed: $(STAMP)
	@test -x $(EDGE)/bin/python || $(PYTHON) -m venv $(EDGE)
	@echo "installing the wheel with its extra edge, which has no PyTorch, into $(EDGE)"
	@$(WHEEL)
	@$(EDGE)/bin/python -m $(PIP) "$$(ls runs/edge/*.whl)[edge]" pytest || $(NO_PIP)
	@touch $@

# LeRobot asks for Python 3.12: the first of these that runs, as a pyenv shim may name one that does not. It comes without
# setuptools, by which evdev is built, a package without wheels.
.venv-lerobot-0.6.1/.installed: $(STAMP) tests/with_lerobot/constraints-0.6.1.txt plugins/lerobot_policy_asd/pyproject.toml \
		tests/with_lerobot/lerobot_robot_fake/pyproject.toml
	@for python in $(PYTHON) python3.12 python3.13 python3 "$$(pyenv root 2>/dev/null)"/versions/3.1[23].*/bin/python3; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && break || python=; done; \
		test -n "$$python" || { echo "make: lerobot 0.6.1 needs Python 3.12 or newer, and none is found: give one by PYTHON=" >&2; exit 1; }; \
		test -x $(LEROBOT_VENV)/bin/python || "$$python" -m venv $(LEROBOT_VENV)
	@echo "installing lerobot 0.6.1 and what it needs into $(LEROBOT_VENV): minutes, and 7 GB"
	@$(LEROBOT_VENV)/bin/python -m $(LEROBOT_PIP) hatchling editables setuptools || $(NO_PIP)
	@$(LEROBOT_VENV)/bin/python -m $(LEROBOT_PIP) --no-build-isolation 'lerobot[$(LEROBOT_EXTRAS)]' pytest \
		-e '.[eval,onnx]' -e plugins/lerobot_policy_asd -e tests/with_lerobot/lerobot_robot_fake || $(NO_PIP)
	@touch $@

# The newest for Python 3.11. It and torchvision are installed without their dependencies: both ask for other versions of
# torch than the pinned one.
.venv-lerobot-0.4.4/.installed: $(STAMP) tests/with_lerobot/requirements-0.4.4.txt plugins/lerobot_policy_asd/pyproject.toml
	@test -x $(LEROBOT_VENV)/bin/python || $(PYTHON) -m venv $(LEROBOT_VENV)
	@echo "installing lerobot 0.4.4 and what it imports into $(LEROBOT_VENV)"
	@$(LEROBOT_VENV)/bin/python -m $(PIP) hatchling editables || $(NO_PIP)
	@$(LEROBOT_VENV)/bin/python -m $(PIP) --no-build-isolation -e '.[eval]' -r tests/with_lerobot/requirements-0.4.4.txt || $(NO_PIP)
	@$(LEROBOT_VENV)/bin/python -m $(PIP) --no-build-isolation --no-deps lerobot torchvision \
		-e plugins/lerobot_policy_asd || $(NO_PIP)
	@touch $@

docs: $(STAMP) ## build the documents as a site into runs/site, strictly (seconds)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict # not --quiet, which would hide the warnings from --strict, too
	@echo "wrote runs/site/index.html; with a search: $(PY) -m http.server -d runs/site"

dist: $(STAMP) ## build the sdists and wheels of the package and of its LeRobot plugin into dist/
	@rm -rf dist && $(PY) -m hatchling build -d dist
	@cd plugins/lerobot_policy_asd && $(CURDIR)/$(PY) -m hatchling build -d $(CURDIR)/dist

proto: $(STAMP) ## generate the protocol of `asd-policy serve` from planner.proto
	@$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. asd_policy/deploy/serving/planner.proto

lint: $(STAMP) ## check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(STAMP) ## put files into the project's format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

types: $(STAMP) ## check types
	@$(PY) -m pyright

clean: ## remove .venv, .venv-lerobot-…, .venv-edge, .venv-suites, dist, caches and results
	rm -rf $(VENV) .venv-lerobot-* $(EDGE) $(SUITES) dist .pytest_cache .ruff_cache .hypothesis runs
