# The commands of README.md and CONTRIBUTING.md under short names.
.PHONY: install test slow lint format types check digits clean

install:
	pip install -r requirements-dev.txt

test:
	python -m pytest

slow:
	python -m pytest -m slow

lint:
	ruff check .
	ruff format --check .

format:
	ruff check --fix .
	ruff format .

types:
	pyright

check: lint types test slow

digits:
	python -m alexnet_jax.main --config=configs/digits.py

# Leaves runs/ alone: results are yours to delete.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
