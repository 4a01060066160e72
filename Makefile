# Everything below makes its own set-up first and is safe to repeat.

PYTHON := .venv/bin/python

.PHONY: setup demo serve test lint bench clean

setup:
	@scripts/setup
	@$(PYTHON) manage.py prepare_samples >/dev/null

demo: setup
	@$(PYTHON) examples/demo.py

serve: setup
	@exec $(PYTHON) manage.py serve

test: setup
	$(PYTHON) -m pytest

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy .
	$(PYTHON) manage.py makemigrations --check --dry-run
	$(PYTHON) manage.py check

bench: setup
	$(PYTHON) benchmarks/run_batch.py --json benchmarks/run_batch.json
	$(PYTHON) benchmarks/upload.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
