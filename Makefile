# Two commands matter: `make demo` and `make test`. Both work on a machine with Python >= 3.11, make and a network.
# A Linux machine without a GPU saves a large download with TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
SERVE ?= 1
# More flags for the demo's two trainings, such as DEMO_FLAGS='--schedule.steps 20'.
DEMO_FLAGS ?=
# Flags of `shardscope reproduce`, such as REPRODUCE_FLAGS='--recipes shard-pico-pretrain shard-pico-anneal'.
REPRODUCE_FLAGS ?=
PORT ?= 8501
TORCH_INDEX ?=
TRITON ?= 3.6.0
TORCH ?= 2.13.0
ATHERIS ?= 3.0.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Every package by its hash, except PyTorch: its build differs by machine, so only its version is pinned.
HASHED := $(PIP) --require-hashes --no-deps --requirement

# For test-cpus: instructions/threads, and which tests.
CPUS ?= $(foreach cpu,default avx2 native,$(foreach threads,1 2 4,$(cpu)/$(threads)))
CPU_TESTS ?= tests

# For hostile and fuzz: where the figures are written, and how long to fuzz.
FIGURES ?= runs/reliability.json
SECONDS ?= 600

.PHONY: demo reproduce test test-cpus hostile fuzz audit test-lowest check eval browser clean help

help:
	@echo "make demo     train a small model here, score it, open it in the explorer (SERVE=0: stop before serving)"
	@echo "make test     run all tests"
	@echo "make test-cpus  run them as on CPUs with fewer instructions, with 1, 2 and 4 threads (hours; CPU_TESTS=tests/model: less)"
	@echo "make reproduce  the reference run on a GPU, from text to report; REPRODUCE_FLAGS='--price-per-hour 2.50'"
	@echo "make eval     score the built-in model offline on a small sample, earlier runs beside it"
	@echo "make hostile  kill runs, rot files, plant strangers' files, twenty browsers at once (up to an hour)"
	@echo "make fuzz     coverage-guided fuzzing of whatever reads strangers' text (SECONDS=28800: a night)"
	@echo "make audit    known vulnerabilities of the dependencies, and a bill of materials"
	@echo "make check    format, lint and types"
	@echo "make browser  find or install the Chromium that the page tests drive"
	@echo "make clean    delete $(VENV) and caches; runs/ stays"

$(VENV)/.demo: pyproject.toml constraints.txt requirements/demo.txt
	@echo "Installing pinned versions into $(VENV) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shardscope needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make demo PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(HASHED) requirements/demo.txt
	@$(PIP) --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/test.txt
	@$(HASHED) requirements/test.txt
	@# GPU builds of PyTorch bring their Triton; with a CPU build the tests run our kernels in its interpreter, where it exists.
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) --no-deps triton==$(TRITON) || echo "No Triton for this machine: kernel tests will be skipped."
	@touch $@

# The explorer opens on the built-in model at once; the small model that is trained meanwhile appears in its list.
# Ctrl+C ends all of it: a paused pretraining is no reason to begin the anneal.
demo: $(VENV)/.demo
	@trap 'exit 130' INT; \
	if [ "$(SERVE)" != 0 ]; then \
	  $(BIN)/streamlit run apps/explorer.py --server.port $(PORT) & explorer=$$!; trap "kill $$explorer 2>/dev/null" EXIT; \
	  echo "The explorer shows the built-in model at http://localhost:$(PORT); a small one is now trained beside it."; \
	fi; \
	$(BIN)/python -m shardscope.recipes.pretrain recipes/shard-pico-pretrain.toml $(DEMO_FLAGS) && \
	$(BIN)/python -m shardscope.recipes.anneal recipes/shard-pico-anneal.toml $(DEMO_FLAGS) && \
	$(BIN)/shardscope report runs/shard-pico-anneal && \
	if [ "$(SERVE)" != 0 ]; then echo "The explorer stays open; Ctrl+C closes it."; wait $$explorer; fi

# Without a GPU it says what it would take, and which smaller runs go through the same stages.
reproduce: $(VENV)/.dev
	@$(BIN)/shardscope reproduce $(REPRODUCE_FLAGS)

eval: $(VENV)/.dev
	@$(BIN)/shardscope eval

test: $(VENV)/.dev browser
	$(BIN)/python -m pytest -m "not browser" --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m browser

# Other machines round differently: PyTorch's kernels depend on the CPU's instructions, sums on the number of threads.
test-cpus: $(VENV)/.dev
	@for cpu in $(CPUS); do \
	  instructions=$${cpu%/*}; threads=$${cpu#*/}; \
	  echo "Instructions: $$instructions, threads: $$threads"; \
	  if [ "$$instructions" = native ]; then unset ATEN_CPU_CAPABILITY; else export ATEN_CPU_CAPABILITY=$$instructions; fi; \
	  OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest --quiet -p no:cacheprovider $(CPU_TESTS) || exit 1; \
	done

# Two at a time, and the twenty browsers alone.
hostile: $(VENV)/.dev browser
	SHARDSCOPE_FIGURES=$(FIGURES) $(BIN)/python -m pytest -m "hostile and not browser" --numprocesses 2 --dist worksteal tests/hostile
	SHARDSCOPE_FIGURES=$(FIGURES) $(BIN)/python -m pytest -m "hostile and browser" tests/hostile

fuzz: $(VENV)/.dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) atheris==$(ATHERIS)
	SHARDSCOPE_FIGURES=$(FIGURES) $(BIN)/python tests/hostile/fuzz.py --seconds $(SECONDS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A bill of materials, and known vulnerabilities of what is installed. The tool stays apart from what it looks at.
# --strict: a package that the database could not be asked about is no package without vulnerabilities.
audit: $(VENV)/.dev
	$(BIN)/python -m scripts.bill_of_materials
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit; }
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/test.txt

# The lowest versions that pyproject.toml allows of what the library itself imports; TORCH=2.11.0 for PyTorch's.
test-lowest: $(VENV)/.dev
	@test -x $(VENV)/lowest/bin/python || $(PYTHON) -m venv $(VENV)/lowest
	@$(PIP) uv
	@VIRTUAL_ENV=$(VENV)/lowest $(BIN)/uv pip install --quiet --resolution lowest-direct --editable . \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==$(TORCH) \
	  "pytest>=9" "hypothesis>=6.150" "beartype>=0.22" "transformers>=5" "tensorboard>=2.18"
	$(VENV)/lowest/bin/python -m pytest -p no:cacheprovider -m "not slow and not browser" tests/model tests/generation \
	  tests/train tests/data tests/test_tokenizer.py tests/test_checkpoint.py tests/config

browser: $(VENV)/.dev
	@[ -n "$(SHARDSCOPE_SKIP_BROWSER)" ] || $(BIN)/python tests/apps/browser.py --install

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
