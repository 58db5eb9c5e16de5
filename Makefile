# make demo   all stages on a part of Fashion-MNIST, in two to three minutes
# make test   the test suite
# make check  lint and types
# make docs   the documentation as a site, in docs/_build/html, in about a minute; its warnings are errors
# make slurm  the launchers on a real Slurm, for two minutes on this machine (needs root, or skips)
# Each sets up .venv first, once. Needs python3 >= 3.11.4; PYTHON=… names another one.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test check docs slurm clean

demo: .venv/installed
	$(BIN)/factor-transfer demo

test: .venv/installed-dev
	$(BIN)/pytest --numprocesses 3 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	@echo "The site is at docs/_build/html/index.html"

slurm: .venv/installed-dev
	bash tests/slurm/run.sh

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11, 4) or sys.exit("Python 3.11.4 or newer is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=…")'
	$(PYTHON) -m venv .venv

# Installed anew when what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv (once; about a minute)"
	$(INSTALL) .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) '.[dev]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) '.[docs]'
	@touch $@

clean:
	rm -rf .venv docs/_build
