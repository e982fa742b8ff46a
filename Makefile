# Two commands for a fresh machine with Python >= 3.11: `make demo` and `make test`. The rest are their parts.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
INTEGRATIONS := $(foreach package,$(wildcard integrations/*),-e "$(package)[test]")
# Tiny models gain nothing from threads: one thread a process, two processes.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: demo test test-all lint types bench-quick env clean

demo: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/specrouter demo

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu"

test-all: $(STAMP)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Two minutes on two cores: routed against transformers and against itself without drafts; 8 tokens verified over 1.
bench-quick: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/specrouter bench speed --widen 60M --workload cot --workload rag --limit 3 --max-tokens 48 \
		--chain demo/draft@4 --chain ngram@8 --peer generate
	HF_HUB_OFFLINE=1 $(BIN)/specrouter bench step --widen 60M --tokens 1 --tokens 8 --rounds 20

include docs/benchmarks/table.mk

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard integrations/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $(INTEGRATIONS)
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
