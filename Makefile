# `make demo` and `make test` do all of their own set-up, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test bench torture setup clean

demo: setup
	$(RUN) -m demo

test: setup
	$(RUN) -m pytest tests

bench: setup
	$(RUN) -m benchmarks.bench

torture: setup
	$(RUN) tests/torture.py

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.10 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) demo_output .pytest_cache
