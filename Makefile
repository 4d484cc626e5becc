# Two commands do everything on a machine with Python 3.11 or newer: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= demo
SWEEP ?= smoke
ARGS ?=

.PHONY: train reproduce sweep evaluate test soak lint format mlflow lock clean
.DELETE_ON_ERROR:

## train: set up if needed, then train the demo (CONFIG=…, ARGS="KEY=VALUE …")
train: $(VENV)/installed
	$(BIN)/seqtrack train --config $(CONFIG) $(ARGS)

## reproduce: train the demo twice, the second time from epoch 3 on, and compare bit for bit (CONFIG=…, ARGS=…)
reproduce: $(VENV)/installed
	$(BIN)/seqtrack reproduce --config $(CONFIG) $(ARGS)

## sweep: train the demo with several learning rates and seeds (CONFIG=…, SWEEP=…, ARGS="KEY=VALUE …")
sweep: $(VENV)/installed
	$(BIN)/seqtrack sweep --config $(CONFIG) --sweep $(SWEEP) $(ARGS)

## test: set up if needed, then run the whole test suite (ARGS="-k stream")
test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 $(ARGS)

## evaluate: the AUC of the newest demo run on drawn sequences that it has not seen (RUN=…, ARGS="--benchmark …")
evaluate: RUN ?= $(firstword $(shell ls -dt runs/$(CONFIG)-*/ 2>/dev/null))
evaluate: $(VENV)/installed
	$(if $(RUN),,$(error no run in runs/: `make train` makes one, RUN=FOLDER names one))
	$(BIN)/seqtrack evaluate --weights $(RUN) $(ARGS)

## soak: what `make test` leaves out: the slow tests, damaged files, faults of stores and disks, a hundred kills (two hours)
soak: $(VENV)/installed
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m benchmarks.fuzz --seconds 60
	$(BIN)/python -m benchmarks.kills --count 100

## lint: style and types
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## format: let ruff put the code into shape
format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## mlflow: open the page with the curves of all runs under runs/
mlflow: $(VENV)/installed
	@echo 'The runs:  http://127.0.0.1:5000/#/experiments?workflowType=machine_learning'
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db

## lock: resolve pyproject.toml anew into requirements.lock
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.14.1 torchvision==0.29.2 '.[dev,fast]'
	( sed -n '/^#/p' requirements.lock; \
	  $(VENV)-lock/bin/python -m pip list --format=freeze --exclude pip --exclude seqtrack \
	  | sed -E -e 's/^((nvidia|cuda|triton)[^=]*==.*)$$/\1 ; sys_platform == "linux"/' \
	    -e 's/^vot-trax==.*$$/& ; sys_platform == "linux" and platform_machine == "x86_64"/' ) > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock

# A changed lock installs again; the stamp is written only when everything went in.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.11 …"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing about 5 GB into $(VENV); this takes some minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
