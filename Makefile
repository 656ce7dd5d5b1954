# Two commands matter: `make run` serves the bundled model, `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
JOBS ?= 2
PYTEST_ARGS ?=
CHAOS_ARGS ?=

.PHONY: help run setup test deploy-check images chaos lint check format clean audit
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.run: pyproject.toml constraints.txt
	@echo "== setting up $(VENV) to run the service"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@echo "== setting up $(VENV) for development"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run  ## set up and serve the bundled model with its page (HOST, PORT)
	@echo "== serving on http://$(HOST):$(PORT); Ctrl-C stops"
	@$(BIN)/maskbit serve --host $(HOST) --port $(PORT)

setup: $(VENV)/.dev  ## make the virtual environment with everything for development

lint: $(VENV)/.dev  ## ruff: style and common errors
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

check: lint  ## lint, types (mypy strict), import contracts
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== import-linter"
	@$(BIN)/lint-imports --no-cache

test: check  ## everything: check, then all tests (JOBS at a time, PYTEST_ARGS)
	@echo "== preparing Triton"
	@$(BIN)/python -m tests.triton_fixtures || echo "its tests are skipped"
	@echo "== pytest"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

deploy-check: $(VENV)/.dev  ## images' files, compose, chart, dashboard and rules, capacity, release; a part of test
	@echo "== deploy-check"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests/test_chart*.py tests/test_cluster_pods.py tests/test_images.py \
		tests/test_monitoring.py tests/test_plan*.py tests/test_probes.py tests/test_release.py tests/test_telemetry.py

images: $(VENV)/.dev  ## build the gateway's and the CPU worker's image and try them (root; buildah, mmdebstrap)
	@echo "== images"
	@MASKBIT_BUILD_IMAGES=1 $(BIN)/python -m pytest -s tests/test_images_built.py

chaos: $(VENV)/.run  ## break the service on purpose: faults and mutants (CHAOS_ARGS, such as --controls)
	@echo "== chaos"
	@$(BIN)/maskbit chaos $(CHAOS_ARGS)

audit:  ## known vulnerabilities of the pinned versions, as pypi.org knows them
	@echo "== pip-audit"
	@test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install -q --disable-pip-version-check 'pip-audit>=2.7'
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

format: $(VENV)/.dev  ## let ruff rewrite files
	@echo "== formatting"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	@echo "== removing $(VENV) and caches"
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
