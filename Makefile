# make demo    set up, evaluate the shipped weights on the built-in faces, complete an example photo
# make test    set up, run the tests
# make bench   set up; time the program's parts beside their targets (see docs/speed.md), ten to fifteen minutes
# make setup   only set up: .venv with the pinned packages and the compiled z-buffer
#
# PYTHON=... chooses the interpreter (3.10, 3.11 or 3.12), VENV=... the environment, PYTEST_ARGS=... what pytest gets.

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null \
	&& command -v $$python && break; done)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input
ZBUFFER := $(wildcard zbuffer/*.py zbuffer/*.toml zbuffer/csrc/*)

.PHONY: demo test bench setup
.DELETE_ON_ERROR:

demo: setup
	$(RUN) main.py --config args.txt --eval --overwrite
	$(RUN) test_my.py --config args.txt
	@echo
	@echo "The table above is in results/eval, with pictures and curves; the completed photo in output/."

test: setup
	$(RUN) -m pytest $(PYTEST_ARGS)

bench: setup
	$(RUN) benchmarks/run.py

setup: $(VENV)/.zbuffer

# The stamps say that a step is complete: an interrupted one is done again, a finished one is not.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "error: Python 3.10, 3.11 or 3.12 is needed: name it, as in make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.packages: $(VENV)/.created requirements.txt requirements-nodeps.txt constraints.txt
	$(PIP) install -r requirements.txt -c constraints.txt
	$(PIP) install --no-deps --no-build-isolation -r requirements-nodeps.txt -c constraints.txt
	@touch $@

$(VENV)/.zbuffer: $(VENV)/.packages $(ZBUFFER)
	$(PIP) install --no-deps --no-build-isolation --force-reinstall ./zbuffer
	@touch $@
