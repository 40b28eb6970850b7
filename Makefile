# Needs Python 3.11 or newer with venv, and make. `make help` says what there is.
PYTHON ?= python3
BIN := .venv/bin

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/ready ## show what Holdbook does (ONCE=1: end after one round)
	$(BIN)/holdbook demo $(if $(ONCE),--once)

test: .venv/ready ## run the tests (ARGS="-k name" passes options to pytest)
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder $(ARGS)

check: .venv/ready ## lint, format, types, import contracts, dependencies
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

bench: .venv/ready ## measure
	$(BIN)/holdbook bench $(ARGS)

docs: .venv/ready ## write docs/reference anew from the code
	$(BIN)/python -m api.reference

lock: ## pin every package of every extra anew
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install --quiet uv
	( echo '# Every package of every extra, pinned with its hashes. Remade by `make lock`.' && \
	  .venv-lock/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras \
	    --generate-hashes --no-emit-index-url --no-header ) > .venv-lock/requirements.lock
	mv .venv-lock/requirements.lock requirements.lock
	rm -rf .venv-lock

clean: ## remove what make and the tools made here
	rm -rf .venv .venv-lock .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/locked: requirements.lock
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

.venv/ready: .venv/locked pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.PHONY: help demo test check bench docs lock clean
