# `make digits` and `make test` need Python and nothing else: what they use is installed in VENV first.
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
# Written after an installation, so that the next call has nothing to install.
RUNNING := $(VENV)/installed-requirements
DEVELOPING := $(VENV)/installed-requirements-dev

.PHONY: help digits test slow photographs lint format types check clean

help:
	@echo "make digits       train a small two-tower AlexNet on handwritten digits, in a minute"
	@echo "make test         run the tests, except the slow ones"
	@echo "make slow         run the slow tests"
	@echo "make photographs  run the tests that need ImageNet's sample photographs"
	@echo "make lint         check style, formatting and the imports between packages"
	@echo "make format       repair style and formatting where that is possible"
	@echo "make types        check types"
	@echo "make check        lint, types, test and slow: before a change is offered"
	@echo "make clean        delete caches and build products; runs/ and $(VENV) stay"
	@echo
	@echo "Each makes the virtual environment $(VENV) and installs what it needs there, if need be."
	@echo "An active virtual environment is not used, unless you name it: make VENV=\$$VIRTUAL_ENV test"
	@echo "Another Python for a new environment: make PYTHON=python3.13 digits"

digits: $(RUNNING)
	@echo "A small two-tower AlexNet learns handwritten digits: about 40 s on two CPU cores."
	$(RUN) -m alexnet_jax.main --config=configs/digits.py

test: $(DEVELOPING)
	@echo "Running the tests, except the slow ones: some minutes."
	$(RUN) -m pytest

slow: $(DEVELOPING)
	$(RUN) -m pytest -m slow

photographs: $(DEVELOPING)
	$(RUN) -m pytest -m photographs

lint: $(DEVELOPING)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(DEVELOPING)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(DEVELOPING)
	$(VENV)/bin/pyright --pythonpath $(RUN)

check: lint types test slow

# Results are yours to delete.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(RUNNING): requirements.txt
	$(venv)
	@echo "Installing requirements.txt in $(VENV)."
	$(RUN) -m pip install --quiet -r requirements.txt
	@touch $@

$(DEVELOPING): requirements-dev.txt requirements.txt
	$(venv)
	@echo "Installing requirements-dev.txt in $(VENV)."
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	@touch $@ $(RUNNING)

# Without pip an environment is not finished: Debian makes such a one where python3-venv is missing.
define venv
	@test -x $(VENV)/bin/pip || { \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "error: $(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.13 ..." >&2; exit 2; }; \
	echo "Making the virtual environment $(VENV)."; \
	$(PYTHON) -m venv $(VENV); }
endef
