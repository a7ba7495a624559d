# `make run` and `make test` are all a newcomer needs; each makes .venv and installs what it lacks.
PYTHON ?= python3
BIN := .venv/bin
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: run test test-gpu lint types docs clean

run: .venv/installed
	$(BIN)/rlkit $(ARGS)

test: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(ARGS)

test-gpu: .venv/installed-test
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

clean:
	rm -rf .venv

# torch first: with it in place nothing else pulls in another build. Without a GPU the CPU build is
# tried where pip can see one; the default build runs on a CPU as well, it is only larger.
.venv/torch:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo 'rlkit needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv .venv
ifeq ($(GPU),yes)
	$(BIN)/pip install -q 'vllm==0.24.0' 'bitsandbytes>=0.48'
else
	$(BIN)/pip install -q 'torch==2.13.0+cpu' 2>/dev/null || $(BIN)/pip install -q 'torch==2.13.0'
endif
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-test: .venv/torch pyproject.toml
	$(BIN)/pip install -q -e '.[test]'
	touch $@ .venv/installed
