# Two commands do everything: `make demo` and `make test`.
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt scripts/install.sh

.PHONY: demo test page-test soak fuzz clients test-calibrated lint unit js docs package example-train example-eval clean

demo: $(VENV)/.installed
	@$(BIN)/tuneserve demo --port $(PORT)

test: lint js unit

# Half an hour of load and faults on the demo model; see benchmarks/serving.
soak: $(VENV)/.installed-dev
	for script in overhead streams cancelled faults soak; do $(BIN)/python benchmarks/serving/$$script.py || exit 1; done

# The page in a real browser; part of `make test` where there is a Chromium (Debian: apt-get install chromium).
page-test: $(VENV)/.installed-dev
	$(BIN)/pytest tests/gateway/test_page.py tests/gateway/test_page_in_browser.py

# Thousands of requests made from our own document and from what OpenAI and Anthropic publish.
fuzz: $(VENV)/.installed-dev
	TUNESERVE_CASES=500 $(BIN)/pytest tests/gateway/test_document.py tests/gateway/test_published_requests.py

# Not part of `make test`: other people's clients, in an environment of their own; writes docs/clients.md.
clients: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python -m tests.clients.run

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

# The documentation, into build/site; a broken link is an error. Part of `make test`.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The sdist and the wheel, into dist/, and whether what the wheel installs runs.
package: $(VENV)/.installed
	scripts/check_package.sh $(VENV)

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
