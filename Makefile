# `make demo` and `make test` each do all their own set-up, and reuse on a second run what the first one made.

# The bundled Triton needs numpy 1.26, and that has no wheels for Python 3.13 and later.
SUPPORTED := 'import sys; print(sys.executable if sys.version_info[:2] in ((3, 11), (3, 12)) else "")'
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell $(p) -c $(SUPPORTED) 2>/dev/null)))
RUN := .venv/bin/python
PIP := .venv/bin/pip --disable-pip-version-check install --require-hashes

.PHONY: demo serve test check format setup clean

demo: .venv/local.stamp ## serve a real model over three ranks, ask it a question, show what ran where
	$(RUN) -m fleet demo

serve: .venv/local.stamp ## keep the local stack serving, until Ctrl-C
	$(RUN) -m fleet serve

test: .venv/test.stamp ## every test; those that need what this machine lacks say so and skip
	$(RUN) -m pytest

check: .venv/test.stamp ## lint, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

format: .venv/test.stamp
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

setup: .venv/test.stamp ## everything the other targets need

clean: ## remove the environment, engines and logs
	rm -rf .venv .fleet

.venv/bin/pip:
	@test -n "$(PYTHON)" || { \
	  echo "error: no Python 3.11 or 3.12 in PATH (python3 is $$(python3 --version 2>&1))"; \
	  echo "  consequence: the Triton bundled for laptops cannot run"; \
	  echo "  fix: install one of them, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; } >&2
	$(PYTHON) -m venv .venv

.venv/local.stamp: requirements/local.txt requirements/wheels.txt | .venv/bin/pip
	$(PIP) -r requirements/local.txt
	$(PIP) --no-deps -r requirements/wheels.txt
	@touch $@

.venv/test.stamp: requirements/test.txt .venv/local.stamp
	$(PIP) -r requirements/test.txt
	@touch $@
