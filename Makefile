# Each target does its own set-up in .venv, once. `make PYTHON=python3.12 test` chooses the Python.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo bench gpu test torture lint clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(RUN) -m demo

bench: $(VENV)/installed
	$(RUN) -m benchmarks.bench

gpu: $(VENV)/installed
	$(RUN) -m benchmarks.gpu

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

torture: $(VENV)/installed-dev
	$(RUN) tests/torture.py

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check

$(VENV)/installed: requirements.txt | $(RUN)
	$(RUN) -m pip install -r $<
	touch $@

# It installs requirements.txt too, so `make demo` after `make test` has nothing to install.
$(VENV)/installed-dev: requirements-dev.txt requirements-export.txt requirements-hub.txt requirements.txt | $(RUN)
	$(RUN) -m pip install -r $<
	touch $(VENV)/installed $@

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.10 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache .hypothesis
