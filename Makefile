# Every target sets up .venv by itself; a machine needs only Python 3.11 or newer, make and a package index.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell $(p) -c "import sys; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1 && echo ok),$(p))))
VENV := .venv
BIN := $(VENV)/bin
# Compiling every file of torch costs more than an install; Python compiles what it imports.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# A first run for that, also where Python is told to write no bytecode: commands then start in seconds, not in fifteen.
WARM := env -u PYTHONDONTWRITEBYTECODE $(BIN)/orthoopt explain gpt2 >/dev/null
OUT ?= bench/results
# A process a core and one thread each: the tests' matrices are too small for two.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help demo test explore test-slow check format docs bench gpu clean

help:
	@echo "make demo       train a small language model on the embedded corpus, a few minutes on two cores"
	@echo "make test       the test suite, under 12 minutes on two cores"
	@echo "make explore    the same on other draws, new at every run"
	@echo "make test-slow  the tests marked slow"
	@echo "make check      ruff and mypy"
	@echo "make docs       the documentation site, in site/; open site/index.html"
	@echo "make bench      the benches that run on this machine, results in $(OUT)"
	@echo "make gpu        the GPU tests and benches in one command, with this machine's own Python, results in \$$OUT"

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.recipes: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e ".[recipes]"
	@$(WARM)
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e ".[docs]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e ".[dev]"
	@$(WARM)
	@touch $@ $(VENV)/.recipes $(VENV)/.docs

demo: $(VENV)/.recipes
	$(BIN)/orthoopt pretrain

test: $(VENV)/.dev
	$(TEST)

explore: $(VENV)/.dev
	HYPOTHESIS_PROFILE=explore $(TEST)

test-slow: $(VENV)/.dev
	$(TEST) -m slow

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy cannot follow an editable install's mapping of kernels/ to orthoopt.kernels: show it the tree as installed.
	@rm -rf .typecheck && mkdir -p .typecheck/orthoopt
	@ln -s $(CURDIR)/orthoopt/* $(CURDIR)/kernels $(CURDIR)/recipes $(CURDIR)/bench .typecheck/orthoopt/
	MYPYPATH=.typecheck $(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Material for MkDocs says at every build that another generator follows it; docs/site/README.md has what we make of that.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.dev
	$(BIN)/orthoopt bench step --out $(OUT)
	$(BIN)/orthoopt bench orthogonalize --out $(OUT)
	$(BIN)/orthoopt bench memory --out $(OUT)
	$(BIN)/orthoopt bench pretrain quick --out $(OUT)

# No virtual environment and no network: a GPU machine brings its own torch, NumPy and pytest.
gpu:
	python3 -m pip install --quiet --no-deps --no-build-isolation --disable-pip-version-check .
	python3 -P -m orthoopt.bench.gpu --out $(OUT)

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .typecheck
