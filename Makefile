PYTHON ?= python3
VENV := .venv
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(VENV)/bin/python -m pytest

# The tools in the virtual environment come first, for make's commands and for what they start.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# Ansible ignores an ansible.cfg in a folder that everyone may write to (a Windows drive under WSL), unless it is named.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

# Ansible wants UTF-8, which these two locales are not.
ifneq (,$(filter C POSIX,$(LC_ALL)))
export LC_ALL := C.UTF-8
endif

.DEFAULT_GOAL := help
.PHONY: help site test lint bench docs locks clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

site: venv-run  ## Plan the hosts of inventory/local and write build/<host>/
	@ansible-playbook site.yml

test: lint  ## Lint, then run every test
	@$(PYTEST) -n $(WORKERS) --dist load --maxschedchunk 1

lint: venv-test  ## Run the linters alone
	@ruff check .
	@ruff format --check .
	@yamllint .
	@ansible-lint -q

bench: venv-test  ## Time the planner, 100 hosts and a second make site
	@$(PYTEST) tests/benchmarks -s --full-benchmarks

docs: venv-test  ## Write again what is generated in README.md, roles/*/README.md and docs/
	@python tests/tools/readmes.py
	@python tests/tools/performance.py
	@$(PYTEST) -q tests/unit/test_calibration.py --update-docs

locks: venv-test  ## Renew requirements/*.lock from requirements/*.in
	@tools/renew_locks

clean:  ## Remove .venv, build/ and caches
	rm -rf .venv .venv-* build .ansible .cache .hypothesis .pytest_cache .ruff_cache

.PHONY: venv-run venv-test
venv-run venv-test: venv-%:
	@tools/make_venv "$(PYTHON)" $(VENV) $*
