# make venv | demo | test | docs | docs-commands | fuzz | kills | sanitize | check | bench: each builds .venv by itself. TORCH=… picks another PyTorch to install.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: venv demo test docs docs-commands fuzz kills sanitize check bench clean
venv: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11; choose another with make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test,check,export,docs]"
	touch $@

demo: .venv/installed
	$(BIN)/python -m darts_sg demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(ARGS)

docs: .venv/installed
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

docs-commands: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/docs $(ARGS)

fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(ARGS)

kills: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.kills --minutes $(or $(MINUTES),10) $(ARGS)

sanitize: .venv/installed
	$(BIN)/python -m tests.sanitize $(ARGS)

bench: .venv/installed
	$(BIN)/python -m darts_sg bench $(ARGS)

check: .venv/installed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
