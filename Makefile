# What can be done here. Needs Python 3.11 or newer with pip, and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.SECONDARY: $(VENV)/bin/pip $(BENCH_VENV)/bin/pip
.PHONY: help demo demo-llm test check format mutants soak bench peers system-deps clean

help:
	@echo "make demo         run the example over real text, killed twice in the middle"
	@echo "make demo-llm     run a pipeline with a small language model (270 MB to download), killed twice"
	@echo "make test         run all tests but the long ones; they start PostgreSQL themselves"
	@echo "make check        lint, format and types, changing nothing"
	@echo "make format       put the sources into the form that 'make check' asks for"
	@echo "make mutants      change every rule of decide in turn, and see that a test notices (some minutes)"
	@echo "make soak         run the tests that take many minutes"
	@echo "make bench        measure; 'make peers' before it adds the other engines"
	@echo "make system-deps  Debian and Ubuntu: install what some tests and the benchmark use"
	@echo "make clean        remove what make made"

demo: $(VENV)/.installed
	$(BIN)/python examples/digest_demo.py

demo-llm: $(VENV)/.installed-demo-llm
	$(BIN)/python examples/llm_demo.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not soak"

soak: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=0

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: $(VENV)/.installed-dev
	rm -rf mutants  # it would go on with the tests of before
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mutmut run
	$(BIN)/mutmut results

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_VENV)/.installed-bench
	$(BENCH_VENV)/bin/python benchmarks/run.py
	$(BENCH_VENV)/bin/python benchmarks/processes.py
	$(BENCH_VENV)/bin/python -m benchmarks.stream
	$(BENCH_VENV)/bin/python -m benchmarks.files

peers: $(BENCH_VENV)/.installed-peers

# One installation for each set of extras, made again when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(BENCH_VENV)/.installed-%: pyproject.toml | $(BENCH_VENV)/bin/pip
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable '.[$*]'
	@touch $@

# Where Python came without ensurepip (Debian's python3-venv), the pip that is there does it.
%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $* 2>/dev/null || \
	    { $(PYTHON) -m venv --clear --without-pip $* && $(PYTHON) -m pip --python $*/bin/python install --quiet pip; }

# Debian and Ubuntu only, and only for the tests and measurements that use them: gcc builds the slow disk, strace counts
# calls of fsync, systemd checks the example of a unit, pgbouncer is what the doctor must recognise, chromium and dot
# (of graphviz) draw what `fsmworkflow draw` writes.
SYSTEM_PROGRAMS := gcc strace systemd-analyze pgbouncer chromium dot
system-deps:
	@PATH="$$PATH:/usr/sbin"; missing=; for one in $(SYSTEM_PROGRAMS); do \
	    command -v $$one >/dev/null || missing="$$missing $$one"; done; \
	if [ -z "$$missing" ]; then echo "$(SYSTEM_PROGRAMS): all are there"; \
	elif ! command -v apt-get >/dev/null; then echo "install with this system's own tool:$$missing"; exit 1; \
	else sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	    $$sudo apt-get update -q && $$sudo apt-get install -y -q --no-install-recommends \
	        gcc libc6-dev strace systemd pgbouncer chromium graphviz fonts-dejavu-core; fi

clean:
	rm -rf $(VENV) $(BENCH_VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
