# Two commands do everything: `make demo` and `make test`.
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt scripts/install.sh

.PHONY: demo test soak test-calibrated lint unit js example-train example-eval clean

demo: $(VENV)/.installed
	@$(BIN)/tuneserve demo --port $(PORT)

test: lint js unit

# Half an hour of load and faults on the demo model; see benchmarks/serving.
soak: $(VENV)/.installed-dev
	for script in overhead streams cancelled faults soak; do $(BIN)/python benchmarks/serving/$$script.py || exit 1; done

# Not part of `make test`: it downloads an environment of 1.5 GB.
test-calibrated: $(VENV)/.installed-dev
	$(BIN)/tuneserve engines install llmcompressor
	$(BIN)/pytest -m calibrated

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.installed-dev clients/js/node_modules/.installed
	$(BIN)/pytest

js: clients/js/node_modules/.installed
	npm test --prefix clients/js

example-train: $(VENV)/.installed
	$(BIN)/python examples/tickets/train.py

example-eval: $(VENV)/.installed
	$(BIN)/python examples/tickets/evaluate.py

$(VENV)/.installed: $(SOURCES)
	@scripts/install.sh $(VENV)
	@touch $@

$(VENV)/.installed-dev: $(SOURCES)
	@scripts/install.sh $(VENV) dev
	@touch $@ $(VENV)/.installed

clients/js/node_modules/.installed: clients/js/package.json clients/js/package-lock.json
	npm ci --prefix clients/js --no-audit --no-fund
	@touch $@

clean:
	rm -rf $(VENV) clients/js/node_modules build dist
