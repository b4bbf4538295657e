# Commands for a newcomer; each line can also be typed by hand.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: quickstart test coverage check wheel

quickstart: $(VENV)/train
	$(VENV)/bin/scratch-gpt quickstart

test: $(VENV)/dev
	$(RUN) -m pytest -n 2 --dist loadgroup

coverage: $(VENV)/dev  # of the everyday tests; the processes that they start are not measured
	$(RUN) -m pytest -n 2 --dist loadgroup -m "not slow" --cov --cov-report=
	@echo "coverage: $$($(RUN) -m coverage report --format=total) percent of hf_scratch_gpt and train"

check: $(VENV)/dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/deptry .

wheel:
	PYTHON=$(PYTHON) .ci/wheel

$(VENV)/train $(VENV)/dev: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[train$(if $(findstring dev,$@),$(comma)dev)]"
	touch $@

comma := ,
