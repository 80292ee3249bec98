# The environment is made on first use and again whenever pyproject.toml changes: one stamp file per
# extra in .venv. `make demo` is content with the small extra, everything else needs `dev`.

PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3.12),$(shell command -v python3.13),python3)
OUT ?= runs/demo
SOAK_SECONDS ?= 120
PYTEST_ARGS ?=

BIN := .venv/bin
DEV := .venv/.installed-dev
DEMO := $(if $(wildcard $(DEV)),$(DEV),.venv/.installed-demo)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs bench soak clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## distil a student from handwritten digits, in under 5 minutes
	$(BIN)/ssdkd run --out $(OUT)

test: $(DEV) ## run the test suite; choose with PYTEST_ARGS="tests/buffer -k limiter"
	$(BIN)/pytest -m "not slow" $(PYTEST_ARGS)

lint: $(DEV) ## check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV) ## check types
	$(BIN)/mypy

docs: $(DEV) ## write from the code: docs/configuration.md, dashboards, Kubernetes' rules
	$(BIN)/python docs/configuration.py > docs/configuration.md
	$(BIN)/python -m deploy.grafana
	$(BIN)/python deploy/prometheus/for_kubernetes.py \
	  > deploy/kubernetes/components/monitoring/rules.yaml

bench: $(DEV) ## measure; figures depend on the machine. Lists the studies, which take hours
	set -e; for file in $$(grep -l __main__ tests/benchmarks/*.py); do echo "== $$file"; \
	  $(BIN)/python -m "tests.benchmarks.$$(basename "$$file" .py)"; done
	$(BIN)/python -m tests.benchmarks.studies

soak: $(DEV) ## run the long tests; SOAK_SECONDS says how long each
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/pytest -m slow $(PYTEST_ARGS)

clean: ## remove caches and build products; keeps .venv and runs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
