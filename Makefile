PYTHON ?= .venv/bin/python

.PHONY: demo test test-long check bench

.venv:
	python3 -m venv .venv && .venv/bin/pip install -qe '.[test]'

demo: .venv
	USER=$${USER:-me} $(PYTHON) examples/counter_flow.py run

test: .venv
	$(PYTHON) -m pytest -n 4

test-long: .venv
	$(PYTHON) -m pytest -n 3 -m long

check: .venv
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

bench: .venv
	$(PYTHON) -m stress.bench
